#!/bin/sh
# docker_probe.sh SOCKET FILTERS DIRECTORY COMMAND SECONDS KILL_AFTER_SECONDS USER
# Runs the command in that directory of a container of the services, with a time limit; USER "" is the container's own.
engine "$1"
ids=$(ids_of "$2" status=running) || exit 1
id=$(printf '%s\n' "$ids" | sed 1q)
[ -n "$id" ] || {
    echo 'no container of its services is running, so the command cannot be run in one' >&2
    exit 1
}
shift 2
set -- "$id" "$@"
user=$6
[ -z "$user" ] || user="--user=$user"
# shellcheck disable=SC2086 # an option, or none
docker exec $user --workdir "$2" "$1" timeout -k "$5" "$4" /bin/sh -c "$3" 2>&1
