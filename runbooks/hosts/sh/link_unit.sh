#!/bin/sh
# link_unit.sh LINKED [PATH TARGET]…
# Creates these links of a unit (LINKED: yes), or removes them.
linked=$1
shift
while [ $# -gt 0 ]; do
    if [ "$linked" = yes ]; then
        mkdir -p "${1%/*}" && ln -sfnT "$2" "$1" || exit 1
    elif [ "$(readlink "$1")" = "$2" ]; then
        rm -f "$1" || exit 1
    fi
    shift 2
done
systemctl daemon-reload
