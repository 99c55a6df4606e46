#!/bin/sh
# docker_control.sh SOCKET ACTION PROJECT SERVICE FILTER…
# Stops, starts, restarts or recreates the containers that match one of the filters. With PROJECT they belong to this SERVICE
# of Compose, which starts and creates them, and their number stays.
# Another major version of Compose would rename the containers, so the version of their label is used.
engine "$1"
action=$2 project=$3 service=$4 force=
shift 4
label() {
    docker inspect --format "{{index .Config.Labels \"com.docker.compose.$1\"}}" "$first"
}
compose() {
    case $version in
    1.*) docker-compose "$@" ;;
    *) docker compose "$@" ;;
    esac
}
up() {
    version=$(label version) folder=$(label project.working_dir) files=$(label project.config_files)
    environment=$(label project.environment_file)
    has=$(compose version --short 2>/dev/null)
    has=${has#v}
    if [ "${has%%.*}" != "${version%%.*}" ]; then
        echo "these containers were created by Docker Compose $version, but this host has ${has:-not that version}: another" \
            "major version would rename them; install Compose ${version%%.*}.x here" >&2
        exit 1
    fi
    cd "$folder" || {
        echo "cannot enter the folder of the Compose project $project: $folder" >&2
        exit 1
    }
    # shellcheck disable=SC2086 # ids
    numbers=$(docker inspect --format '{{index .Config.Labels "com.docker.compose.container-number"}}' $ids | sort -u)
    number=$(printf '%s\n' "$numbers" | wc -l)
    set -- -p "$project"
    IFS=,
    for file in $files; do
        [ -f "$file" ] || {
            echo "the Compose file of $project does not exist: $file in $folder" >&2
            exit 1
        }
        set -- "$@" -f "$file"
    done
    for file in $environment; do set -- "$@" --env-file "$file"; done
    unset IFS
    # shellcheck disable=SC2086 # an option, or none
    compose "$@" up -d --no-deps --no-build $force --scale "$service=$((number))" "$service" 2>&1
}
each() {
    waited='' failed=0
    for id in $ids; do
        docker "$1" "$id" >/dev/null &
        waited="$waited $!"
    done
    for one in $waited; do wait "$one" || failed=1; done
    return "$failed"
}
ids=$(found "$@") || exit
first=$(printf '%s\n' "$ids" | sed 1q)
if [ -z "$first" ]; then
    echo "$service no longer has a container" >&2
    exit 1
fi
case $action in
start) if [ -n "$project" ]; then up; else each start; fi ;;
recreate)
    force=--force-recreate
    up
    ;;
*) each "$action" ;;
esac
