#!/bin/sh
# docker_exec.sh: functions for scripts that run something in containers of the services.
# ids_of FILTERS OTHER…: prints the ids of the containers that match these sets of filters, one set a line, separated by
# spaces; the OTHER filters belong to each set. Fails at once if the engine does not answer.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
ids_of() {
    sets=$1
    shift
    set -f
    while read -r filters; do
        # shellcheck disable=SC2086 # no filter has a space
        found $filters "$@" || return
    done <<EOF
$sets
EOF
}
