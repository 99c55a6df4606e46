#!/bin/sh
# survey_docker.sh SOCKET
# Prints docker inspect of all containers of the engine.
engine "$1"
ids=$(docker ps -aq --no-trunc) || exit
[ -n "$ids" ] || exit 0
# shellcheck disable=SC2086 # ids
docker inspect --type container $ids 2>/dev/null
:
