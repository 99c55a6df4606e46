#!/bin/sh
# commands_status.sh DIRECTORY STATUS
# Runs the status command in that directory. Prints the stat of the process that it names ("-": none); then, for this
# process and those below it: their pids in each namespace, those that work in the directory, the commands that name
# Celery, and the environment of the first of these; last, the output of the status command.
# shellcheck disable=SC3013 # -ef: dash and busybox have it
directory=$1 status=$2
shift 2
answer=$(cd "$directory" && eval "$status" 2>&1)
code=$?
pid=$(printf '%s\n' "$answer" | sed -n '/^[0-9][0-9]*$/{p;q;}')
[ -z "$pid" ] || cat "/proc/$pid/stat" || pid=
[ -n "$pid" ] || echo -
below() {
    echo "/proc/$1"
    for task in /proc/"$1"/task/*/children; do
        read -r children <"$task"
        for child in $children; do below "$child"; done
    done
} 2>/dev/null
if [ -n "$pid" ]; then
    pids='' commands='' here=''
    for one in $(below "$pid"); do
        pids="$pids $one/status" commands="$commands $one/cmdline"
        [ ! "$one/cwd" -ef "$directory" ] || here="$here ${one#/proc/}"
    done
    # shellcheck disable=SC2086 # paths of /proc
    grep -sH '^NSpid:' $pids
    echo "here:$here"
    # shellcheck disable=SC2086
    named=$(grep -saH 'cele[r]y' $commands | tr '\0' ' ')
    first=${named%%/cmdline:*}
    [ -z "$named" ] || printf '%s\n%s/environ:%s\n' "$named" "$first" "$({ base64 -w 0 <"$first/environ"; } 2>/dev/null)"
fi
echo
printf '%s\n' "$answer"
exit $code
