#!/bin/sh
# docker_exec.sh: what runs something where the containers of the services are.
# ids_of FILTERS OTHER…: the ids of the containers that these sets of filters mean, one set in a line, parted by spaces,
# each with the other filters.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
ids_of() {
    sets=$1
    shift
    set -f
    while read -r filters; do
        # shellcheck disable=SC2086 # no filter has a space
        found $filters "$@"
    done <<EOF
$sets
EOF
}
