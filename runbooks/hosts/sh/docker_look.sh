#!/bin/sh
# docker_look.sh SOCKET BYTES NOTABLE FAILURE OUTCOME FILTER…
# Prints docker inspect of the containers that match one of the filters; their processes, as "/proc/PID/cgroup:ID", with
# the pids by which these know themselves; the programs of the processes; the last lines of the logs of containers that do
# not run, or restart; and, if no container matches, the names of all containers with their projects. Last, after a line
# "==> PATH <==" with its id, the lines of each log that match the expression NOTABLE, from the last BYTES of its file; and
# if one of them matches FAILURE, also those that match OUTCOME. Only the engine's usual log driver has a file.
# shellcheck disable=SC2154 # dir is of frame.sh
engine "$1"
bytes=$2 notable=$3 failure=$4 outcome=$5
shift 5
ids=$(found "$@") || exit
if [ -n "$ids" ]; then
    # shellcheck disable=SC2086 # a container that was removed meanwhile is left out
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
