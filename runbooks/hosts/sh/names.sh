#!/bin/sh
# names PID WORD: whether the command of a process contains the word. Without other programs; read drops the NULs.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
names() {
    while IFS= read -r part || [ -n "$part" ]; do
        case $part in *"$2"*) return 0 ;; esac
    done
    return 1
} 2>/dev/null <"/proc/$1/cmdline"
