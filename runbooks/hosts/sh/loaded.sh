#!/bin/sh
# loaded.sh FOLDER… -- FILE…
# Prints one digest of the sizes and times of these files, and of the modules in and below the folders: everything that a
# load of the application depended on. Files that do not exist are left out. `describe_application.py: came_from` computes
# the same digest.
LC_ALL=C
export LC_ALL
while [ "$1" != -- ]; do
    set -- "$@" "$1"/*.py "$1"/*/*.py
    shift
done
shift
stat -L -c '%s %.Y %n' -- "$@" 2>/dev/null | sha256sum
