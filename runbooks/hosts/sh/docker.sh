#!/bin/sh
# docker.sh: what the docker_….sh scripts have in common.
# engine SOCKET: the engine that is asked; "": where Docker's client looks.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
engine() {
    if [ -n "$1" ]; then
        DOCKER_HOST=unix://$1
        export DOCKER_HOST
    fi
    command -v docker >/dev/null || {
        echo 'there is no docker on its PATH' >&2
        exit 127
    }
}
# found FILTER…: the ids of the containers that one of these filters means, one in a line.
# shellcheck disable=SC2317,SC2329
found() {
    n=$#
    while [ "$n" -gt 0 ]; do
        set -- "$@" --filter "$1"
        shift
        n=$((n - 1))
    done
    docker ps -aq --no-trunc "$@"
}
