#!/bin/sh
# alive PID:START: whether this process still runs. START is its start in clock ticks: a pid may be used again.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
alive() {
    read -r stat 2>/dev/null <"/proc/${1%:*}/stat" || return 1
    # shellcheck disable=SC2086 # its words
    set -- "$1" ${stat##*) }
    [ "$2" != Z ] && [ "${21}" = "${1#*:}" ]
}
