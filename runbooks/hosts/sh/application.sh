#!/bin/sh
# application.sh PYTHON USER GROUP ENVIRONMENT PROGRAM START LAST
# Runs a program in the application's own Python, as root as the application's user (GROUP: of this group, "": of its own).
# The program, and what the shell command ENVIRONMENT prints, travel on standard input, so that nothing of them stands in a
# list of processes or on a disk. START reads them. It ends with the first line that begins with LAST, whatever the
# program has started.
python=$1 user=$2 group=$3 environment=$4 program=$5 start=$6 last=$7
me=$(id -un)
cannot() {
    printf '%s\n' "$*" >&2
    exit 1
}
name_it="name the Python of the application's environment"
[ -f "$python" ] || cannot "celery_python is $python, which $me does not find: $name_it"
[ -x "$python" ] || cannot "celery_python is $python, which $me may not execute: $name_it"
set --
if [ "$(id -u)" -eq 0 ]; then
    own=$(id -g -- "$user") 2>/dev/null || cannot "celery_user is $user, and there is no such user"
    set -- setpriv --reuid "$user" --regid "${group:-$own}" --init-groups --reset-env --
    said=$("$@" true 2>&1) || cannot "root cannot become $user (setpriv of util-linux is needed for that, which knows" \
        "--init-groups and --reset-env; busybox's does not; or connect as the application's user): $said"
fi
{
    printf %s "$program"
    eval "$environment"
} | "$@" "$python" -B -c "$start" 2>&1 | sed "/^$last/q"
