#!/bin/sh
# application.sh PYTHON USER GROUP ENVIRONMENT PROGRAM START LAST
# Runs a program in the application's own Python; for root, as the application's user (GROUP: with this group, "": the
# user's own). The program, and the output of the shell command ENVIRONMENT, travel on standard input, so that no list of
# processes and no disk has them. START reads them. It ends with the first line that begins with LAST, even if processes
# that the program has started still run.
python=$1 user=$2 group=$3 environment=$4 program=$5 start=$6 last=$7
me=$(id -un)
cannot() {
    printf '%s\n' "$*" >&2
    exit 1
}
name_it="name the Python of the application's environment"
[ -f "$python" ] || cannot "celery_python is $python, which does not exist for $me: $name_it"
[ -x "$python" ] || cannot "celery_python is $python, which $me may not execute: $name_it"
set --
if [ "$(id -u)" -eq 0 ]; then
    own=$(id -g -- "$user") 2>/dev/null || cannot "celery_user is $user, but this user does not exist"
    set -- setpriv --reuid "$user" --regid "${group:-$own}" --init-groups --reset-env --
    said=$("$@" true 2>&1) || cannot "root cannot become $user: $said. This needs setpriv of util-linux, with" \
        "--init-groups and --reset-env, not busybox's; or connect as the application's user"
fi
{
    printf %s "$program"
    eval "$environment"
} | "$@" "$python" -B -c "$start" 2>&1 | sed "/^$last/q"
