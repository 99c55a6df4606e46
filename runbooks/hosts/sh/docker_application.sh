#!/bin/sh
# docker_application.sh SOCKET FILTERS PYTHON PROGRAM START LAST
# As application.sh: runs a program in the application's own Python, in a container of its services, as its user. If none
# runs steadily, it runs it in a temporary container: with the image, mounts, variables, network, user and folder of one
# that is down, but without its command, name, ports, log and restarts. It exits with 3 if that is not possible, or if the
# engine does not answer.
engine "$1"
filters=$2 python=$3 program=$4 start=$5 last=$6 name=celery-runbooks-load-$$
unknown() {
    printf '%s\n' "$*" >&2
    exit 3
}
of() {
    docker inspect --format "$1" "$id"
}
like_it() {
    variables=$(of '{{range .Config.Env}}{{println .}}{{end}}')
    if [ "$(printf '%s\n' "$variables" | grep -c .)" -ne "$(of '{{len .Config.Env}}')" ]; then
        unknown "no container of its services runs, and a variable of $(of '{{.Name}}') has several lines, so a temporary" \
            "copy cannot have it"
    fi
    if [ "$(of '{{len .NetworkSettings.Networks}}')" -gt 1 ]; then
        unknown "no container of its services runs, and a temporary copy of $(of '{{.Name}}') cannot be in all of its" \
            "networks"
    fi
    image=$(of '{{.Image}}')
    # shellcheck disable=SC2016 # they are Go's
    options=$(of '--network={{.HostConfig.NetworkMode}}
--memory={{.HostConfig.Memory}}
--read-only={{.HostConfig.ReadonlyRootfs}}
--user={{.Config.User}}
--workdir={{.Config.WorkingDir}}
{{range .HostConfig.ExtraHosts}}--add-host={{println .}}{{end}}
{{range .HostConfig.GroupAdd}}--group-add={{println .}}{{end}}
{{range $path, $how := .HostConfig.Tmpfs}}--tmpfs={{$path}}{{with $how}}:{{.}}{{end}}{{println}}{{end}}')
}
# The variables come on a separate pipe, so that no list of processes and no disk has them.
in_it() {
    if [ -z "$image" ]; then
        docker exec -i "$id" "$@"
        return
    fi
    entry=$1
    shift
    {
        IFS='
'
        # shellcheck disable=SC2086 # an option in each line
        printf '%s\n' "$variables" | docker run --rm -i --name "$name" --pull never --no-healthcheck \
            --log-driver none --volumes-from "$id" --env-file /dev/fd/3 $options --entrypoint "$entry" "$image" \
            "$@" 3<&0 <&4
    } 4<&0
}
image=''
ids=$(ids_of "$filters" status=running) || exit 3
id=''
for id in $ids; do
    [ "$(of '{{.RestartCount}}')" -ne 0 ] || break
    id=''
done
if [ -z "$id" ]; then
    ids=$(ids_of "$filters") || exit 3
    id=$(printf '%s\n' "$ids" | sed 1q)
    [ -n "$id" ] || unknown 'its services have no container, so the application cannot be loaded in one'
    like_it
fi
said=$(in_it "$python" -c '' 2>&1 </dev/null)
case $? in
126 | 127)
    of "celery_python is $python, but the container {{.Name}} of the image {{.Config.Image}} cannot run it: name \
the Python that has the application in this image" >&2
    exit 1
    ;;
125) unknown "no container of its services runs, and a temporary copy of $(of '{{.Name}}') cannot be started: $said" ;;
esac
printf %s "$program" | in_it "$python" -B -c "$start" 2>&1 | sed "/^$last/q"
[ -z "$image" ] || docker rm -f "$name" >/dev/null 2>&1
:
