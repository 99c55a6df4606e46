#!/bin/sh
# loaded.sh FOLDER… -- FILE…
# One digest of the size and time of these files, and of the modules in and below the folders: what a load of the
# application depended on. What is not there is left out. `describe_application.py: came_from` makes the same.
LC_ALL=C
export LC_ALL
while [ "$1" != -- ]; do
    set -- "$@" "$1"/*.py "$1"/*/*.py
    shift
done
shift
stat -L -c '%s %.Y %n' -- "$@" 2>/dev/null | sha256sum
