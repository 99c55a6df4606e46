#!/bin/sh
# docker_exec.sh: what runs something in a container of the services.
# inside FILTERS: the first running container that one of these sets of filters means, one set in a line, parted by spaces;
# leaves its id in $id. Without one it exits.
# shellcheck disable=SC2034,SC2317,SC2329 # scripts that come after this call it
inside() {
    set -f
    while [ -z "$id" ] && read -r filters; do
        # shellcheck disable=SC2086 # no filter has a space
        id=$(found $filters status=running | sed 1q)
    done <<EOF
$1
EOF
    [ -n "$id" ] || {
        echo 'no container of its services is running, so there is none to load the application in' >&2
        exit 1
    }
}
