#!/bin/sh
# probe.sh DIRECTORY COMMAND SECONDS KILL_AFTER_SECONDS USER
# Runs the command in that directory with a time limit, as that user ("": the current one); root needs no sudo for that.
cd "$1" || exit 126
user=$5 me=
set -- timeout -k "$4" "$3" /bin/sh -c "$2"
[ -z "$user" ] || me=$(id -un)
case $me in
"$user") ;;
root) set -- runuser -u "$user" -- "$@" ;;
*) set -- sudo -n -u "$user" -- "$@" ;;
esac
"$@" 2>&1
