#!/bin/sh
# files.sh PATH…
# Which of these exist, as a row of 0 and 1, and 2 for a folder; then the state of each that does; then their bytes. That is two processes for
# any number of files. -L: of a link, the file it leads to. LC_ALL: seconds with a point.
there=
for path; do
    shift
    if [ -d "$path" ]; then
        there=${there}2
    elif [ -e "$path" ]; then
        there=${there}1
        set -- "$@" "$path"
    else
        there=${there}0
    fi
done
echo "$there"
[ $# -gt 0 ] || exit 0
LC_ALL=C stat -L -c '%s %f %.Y %.Z' -- "$@" && cat -- "$@"
