#!/bin/sh
# files.sh PATH…
# Prints which of these exist, as a row of 0, 1 and 2 (a folder); then the state of each file; then their bytes: two
# processes for any number of files. -L: of a link, the file that it leads to. LC_ALL: seconds with a point.
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
