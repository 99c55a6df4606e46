#!/bin/sh
# docker_look.sh SOCKET BYTES NOTABLE FAILURE OUTCOME FILTER…
# What docker inspect says of the containers that one of the filters means; the processes in them, as "/proc/PID/cgroup:ID",
# with the numbers by which they know themselves; the programs of those; the last lines of the logs of containers that do
# not run, or restart; and the names of all containers with their projects, where there are none of these. Last, after
# "==> PATH <==" that has its id, what the log of each says that fits the expression NOTABLE, of the last BYTES of its
# file; and where one of these lines fits FAILURE, those that fit OUTCOME as well. Only the engine's usual kind of log has
# a file.
# shellcheck disable=SC2154 # dir is of frame.sh
engine "$1"
bytes=$2 notable=$3 failure=$4 outcome=$5
shift 5
ids=$(found "$@") || exit
if [ -n "$ids" ]; then
    # shellcheck disable=SC2086 # a container that is gone meanwhile is left out
    shown=$(docker inspect --type container $ids 2>/dev/null)
    printf '%s\n' "$shown"
    echo ---
    inside=$(grep -soHF -m 1 -e "$ids" /proc/[0-9]*/cgroup)
    printf '%s\n' "$inside"
    pids=''
    for one in $inside; do pids="$pids ${one%/cgroup:*}"; done
    echo ---
    if [ -n "$pids" ]; then
        # shellcheck disable=SC2046,SC2086
        grep -sH '^NSpid:' $(printf '%s/status ' $pids)
        # shellcheck disable=SC2046,SC2086
        LC_ALL=C stat -c '%N' -- $(printf '%s/exe ' $pids) 2>/dev/null
    fi
    echo ---
    # shellcheck disable=SC2086
    down=$(docker inspect --type container \
        --format '{{if or (not .State.Running) .State.Restarting}}{{.Id}}{{end}}' $ids 2>/dev/null)
    for id in $down; do
        echo "$id"
        docker logs --tail 15 "$id" 2>&1 | sed 's/^/ /'
    done
    echo ---
    files=$(printf '%s\n' "$shown" | sed -n 's/^ *"LogPath": "\(\/[^"]*\)",$/\1/p')
    if [ -n "$files" ]; then
        # shellcheck disable=SC2086 # the engine's paths have no spaces
        tail -v -c "$bytes" -- $files 2>/dev/null | LC_ALL=C grep -aE -e '^==> /' -e "$notable|$outcome" >"$dir/logs"
        if LC_ALL=C grep -qaE -e "$failure" "$dir/logs"; then notable="$notable|$outcome"; fi
        LC_ALL=C grep -aE -e '^==> /' -e "$notable" "$dir/logs"
    fi
else
    printf '[]\n---\n---\n---\n'
    all=$(docker ps -aq)
    # shellcheck disable=SC2086
    [ -z "$all" ] || docker inspect --type container \
        --format '{{index .Config.Labels "com.docker.compose.project"}} {{.Name}}' $all 2>/dev/null
fi
:
