#!/bin/sh
# systemd_units.sh DIRECTORY MARK PROPERTIES GROUPS UNIT…
# Prints what systemd says of these units, and of those in the directory that have the mark: each costs it half a
# millisecond. Then the times, digests and first lines of their drop-ins; then the processes in the control groups of all
# such units, and whether a process without a parent in the group names Celery; then the environments of the main processes.
# GROUPS are regular expressions for the paths of the control groups, a line each.
cd "$1" || exit 1
mark=$2 properties=$3 groups=$4
shift 4
wanted=" $* " ours=
for path in celery-worker@?*.service celery-beat.service celery-cron-?*.timer; do
    case $wanted in *" $path "*) continue ;; esac
    ! marked "$path" "$mark" || ours="$ours $path"
done
# shellcheck disable=SC2086 # names of units have no spaces
shown=$(systemctl show --property="$properties" -- "$@" $ours) || exit 1
printf '%s\n---\n' "$shown"
set --
dropins='' environs=''
for word in $shown; do
    case $word in MainPID=0) ;; MainPID=*) environs="$environs /proc/${word#*=}/environ" ;; esac
    case $word in DropInPaths=*) dropins=1 word=${word#*=} ;; *=*) dropins= ;; esac
    case $dropins$word in 1/*) set -- "$@" "$word" ;; esac
done
if [ $# -gt 0 ]; then
    LC_ALL=C stat -L -c '%.Y %.Z %n' -- "$@"
    sha256sum -- "$@"
    grep -sHm 20 '^[^#;[]' -- "$@"
fi
echo ---
grep -sH "$groups" /proc/[0-9]*/cgroup | while read -r line; do
    pid=${line#/proc/}
    pid=${pid%%/*}
    [ "$pid" != "$last" ] || continue
    last=$pid
    read -r stat <"/proc/$pid/stat" || continue
    what=-
    case ${stat##*) } in ?" 1 "*) ! names "$pid" celery || what=celery ;; esac
    printf '%s %s %s\n' "${line##*/}" "$what" "$stat"
done
echo ---
# shellcheck disable=SC2086 # paths of /proc
[ -z "$environs" ] || tail -v -c +1 -- $environs 2>/dev/null
:
