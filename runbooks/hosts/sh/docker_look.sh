#!/bin/sh
# docker_look.sh SOCKET FILTER…
# What docker inspect says of the containers that one of the filters means; the processes in them, as "/proc/PID/cgroup:ID",
# with the numbers by which they know themselves; the programs of those; the last lines of the logs of containers that do
# not run, or restart; and the names of all containers with their projects, where there are none of these.
engine "$1"
shift
ids=$(found "$@") || exit
if [ -n "$ids" ]; then
    # shellcheck disable=SC2086 # a container that is gone meanwhile is left out
    docker inspect --type container $ids 2>/dev/null
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
    down=$(found "$@" status=exited status=restarting status=dead)
    for id in $down; do
        echo "$id"
        docker logs --tail 15 "$id" 2>&1 | sed 's/^/ /'
    done
else
    printf '[]\n---\n---\n---\n'
    docker ps -a --format '{{.Label "com.docker.compose.project"}} {{.Names}}'
fi
:
