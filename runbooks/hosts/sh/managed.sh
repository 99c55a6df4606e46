#!/bin/sh
# managed.sh MARK KNOWN DIRECTORY…
# Prints the files of these directories that have the mark, except the KNOWN ones (a path a line): path, state, bytes in
# base64.
mark=$1 known=$2
shift 2
for directory; do
    for path in "$directory"/celery*; do
        case $known in *"
$path
"*) continue ;; esac
        marked "$path" "$mark" || continue
        printf '%s\n' "$path"
        LC_ALL=C stat -L -c '%f %.Y %.Z' "$path"
        base64 <"$path" | tr -d '\n'
        echo
    done
done
:
