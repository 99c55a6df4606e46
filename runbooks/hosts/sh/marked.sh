#!/bin/sh
# marked PATH MARK: whether the first line of a file has the mark; not of a link, which may lead to a unit that is wanted.
# By the shell's own means: a process for each file would cost more than all else that a look asks.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
marked() {
    first=
    [ ! -f "$1" ] || [ -L "$1" ] || IFS= read -r first <"$1"
    case $first in *"$2"*) ;; *) false ;; esac
}
