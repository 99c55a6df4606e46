#!/bin/sh
# docker.sh: functions for the docker_….sh scripts.
# engine SOCKET: chooses the engine to ask; "": the default of Docker's client.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
engine() {
    if [ -n "$1" ]; then
        DOCKER_HOST=unix://$1
        export DOCKER_HOST
    fi
    command -v docker >/dev/null || {
        echo 'docker is not on its PATH' >&2
        exit 127
    }
}
# found FILTER…: prints the ids of the containers that match one of these filters, one a line.
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
