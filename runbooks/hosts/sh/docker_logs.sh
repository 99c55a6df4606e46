#!/bin/sh
# docker_logs.sh SOCKET OPTION AT POSITIONS LINES FILTER…
# Prints the logs of these containers with times, each after a line "=ID". OPTION is --tail, for the last AT lines of each;
# or --since, for the first LINES after AT, or after the time in one of the POSITIONS (each "ID=TIME").
engine "$1"
option=$2 default=$3 positions=$4 lines=$5
shift 5
for id in $(found "$@"); do
    at=$default
    for one in $positions; do
        if [ "${one%%=*}" = "$id" ]; then at=${one#*=}; fi
    done
    echo "=$id"
    if [ "$option" = --tail ]; then
        docker logs --timestamps --tail "$at" "$id" 2>&1
    else
        docker logs --timestamps --since "$at" "$id" 2>&1 | head -n "$lines"
    fi
done
