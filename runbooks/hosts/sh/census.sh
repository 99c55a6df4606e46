#!/bin/sh
# census.sh DIRECTORY PROPERTIES PIDS GROUP…
# Prints every process whose command names Celery, of any user and any manager; or, if PIDS are given, only these. In
# sections: whether each process works in the directory, whether it is in another pid namespace, and whether processes of
# other users are hidden; lines of its stat, status and control groups; the stat of each process above it; its owner and
# its program; after its number, the inodes of its sockets; their TCP connections; the broker in its environment, without
# login and options, and supervisord's variables there and in the environments above it; what systemd says of their units
# and of those whose files name Celery, except units that match a GROUP, with only the names of their variables; lines of
# unit files that do not suit Celery; the commands.
# A process costs a small host a millisecond, so each program runs once for all of them. The answer of a worker shows its
# broker, so sockets and environments (the latter unless a supervisord runs something here) are read only for PIDS, or
# without PIDS for beats, which never answer. A process that a worker has forked has the worker's environment and broker,
# so it is not asked. The pids of main processes are left in the script's folder, for worker_logs.sh.
# shellcheck disable=SC3013,SC2086,SC2013,SC2012 # -ef: dash and busybox have it; words that are split have no spaces; what
# ls prints of sockets is of one form
# shellcheck disable=SC2154 # dir is of frame.sh
directory=$1 properties=$2 wanted=$3
shift 3
LC_ALL=C
export LC_ALL
set -f
nl='
'
tab='	'
words=" $tab$nl"
is_ours() {
    unit=$1
    shift
    for own; do
        # shellcheck disable=SC2254 # it is a pattern
        case $unit in $own) return 0 ;; esac
    done
    return 1
}
# of FIELD…: sets the variables for a stat, whose fields are those after the name.
of() {
    parent=$2 forked=$(($7 & 64))
}
climb() {
    up=$1
    while [ "$up" -gt 0 ]; do
        case $known in *" $up "*) return ;; esac
        known="$known$up "
        read -r line <"/proc/$up/stat" || return
        printf '%s\n' "$line"
        case $line in *" (supervisord) "*) supervised=1 ;; esac
        between="$between /proc/$up/environ"
        of ${line##*) }
        up=$parent
    done
} 2>/dev/null
# Prints the lines of unit files that name Celery, or do not suit it.
lines_of_units() (
    set +f
    grep -sHnE \
        'cele[r]y|^[[:space:]]*(KillMode[[:space:]]*=[[:space:]]*(process|none)|Type[[:space:]]*=[[:space:]]*forking)' \
        /etc/systemd/system/*.service /etc/systemd/system/*.service.d/*.conf /run/systemd/system/*.service \
        /run/systemd/system/*.service.d/*.conf /usr/local/lib/systemd/system/*.service /lib/systemd/system/*cele*.service \
        /lib/systemd/system/*cele*.service.d/*.conf
)
# Instances stand for their templates: those that start with the host, and all that are loaded.
name_units() {
    set +f
    for path; do
        name=${path##*/}
        case $name in *@.service) name="${name%.service}*.service" ;; esac
        units="$units$name$nl"
        # shellcheck disable=SC2231 # it is a pattern
        for link in /etc/systemd/system/*.wants/$name; do
            [ ! -L "$link" ] || units="$units${link##*/}$nl"
        done
    done
    set -f
}
if [ -n "$wanted" ]; then
    commands=$(for one in $wanted; do [ ! -r "/proc/$one/cmdline" ] || echo "/proc/$one/cmdline"; done)
else
    commands=$(
        set +f
        grep -lsa 'cele[r]y' /proc/[0-9]*/cmdline
    )
fi
own='' exes='' states=''
for path in $commands; do
    one=${path%/cmdline} here=- inside=-
    [ ! "$one/cwd" -ef "$directory" ] || here=here
    [ ! -e "$one/ns/pid" ] || [ "$one/ns/pid" -ef /proc/self/ns/pid ] || inside=inside
    printf '%s %s %s\n' "${one#/proc/}" $here $inside
    own="$own $one" exes="$exes $one/exe" states="$states $one/stat $one/status $one/cgroup"
done
[ -r /proc/1/stat ] || echo hidden
echo ---
lines=''
[ -z "$own" ] || lines=$(grep -sHE \
    '^([0-9]+ \(|[0-9]*:(name=systemd)?:/|VmRSS:|NSpid:|Sig(Ign|Cgt):)|[0-9a-f]{64}([.]scope)?$' $states)
[ -z "$lines" ] || printf '%s\n' "$lines"
echo ---
stats='' pids=' ' units='' known=' ' own_environs='' supervised='' between='' fds='' environs='' mains=''
nets='/proc/net/tcp /proc/net/tcp6'
IFS=$nl
for line in $lines; do
    case $line in
    */stat:*)
        line=${line#*:}
        stats="$stats$line$nl" pids="$pids${line%% *} "
        ;;
    */user@*.service/*) ;;
    */cgroup:*.service | */cgroup:*.scope) units="$units${line##*/}$nl" ;;
    esac
done
for stat in $stats; do
    IFS=$words
    one=/proc/${stat%% *}
    of ${stat##*) }
    case $pids in *" $parent "*) [ "$forked" -eq 0 ] || continue ;; esac
    climb "$parent"
    mains="$mains ${stat%% *}"
    own_environs="$own_environs $one/environ"
    [ -n "$wanted" ] || names "${one#/proc/}" beat || continue
    fds="$fds $one/fd" environs="$environs $one/environ"
    [ ! -e "$one/ns/net" ] || [ "$one/ns/net" -ef /proc/self/ns/net ] || nets="$nets $one/net/tcp $one/net/tcp6"
done
IFS=$words
echo "$mains" >"$dir/mains"
echo ---
[ -z "$own" ] || stat -c '%n %u %U %N' -- $own $exes 2>/dev/null
echo ---
[ -z "$supervised" ] || environs="$between $own_environs"
sockets='' inodes=''
[ -z "$fds" ] || sockets=$(ls -ln -- /proc/self/ns $fds 2>/dev/null |
    sed -nE 's|^/proc/([0-9]+)/fd:$|=\1|p; s|^l.* -> .?socket:\[([0-9]+)\].?$|\1|p')
[ -z "$sockets" ] || printf '%s\n' "$sockets"
echo ---
for word in $sockets; do
    case $word in =*) ;; *) inodes="$inodes${inodes:+$nl}$word" ;; esac
done
[ -z "$inodes" ] || grep -shwF -e "$inodes" $nets
echo ---
environ=''
[ -z "$environs" ] || environ=$(
    grep -saHE 'SUPERVISOR_(GROUP|PROCESS)_NAME=|BROKER[A-Z0-9_]*=[a-z+]+:' $environs | tr '\0' '\t'
)
[ -z "$environ" ] || printf '%s\n' "$environ" | sed -nE "
s|^/proc/([0-9]+)/environ:|\\1$tab|
h
s|^([0-9]+)$tab(.*$tab)?SUPERVISOR_GROUP_NAME=([^$tab]*)$tab.*|\\1 group \\3|p
g
s|^([0-9]+)$tab(.*$tab)?SUPERVISOR_PROCESS_NAME=([^$tab]*)$tab.*|\\1 process \\3|p
g
t forget
:forget
s|^([0-9]+)$tab(.*$tab)?CELERY_BROKER_URL=|\\1$tab=|
t url
/BROKER[A-Z0-9_]*=[a-z+]+:.*BROKER[A-Z0-9_]*=[a-z+]+:/d
s|^([0-9]+)$tab(.*$tab)?[A-Z0-9_]*BROKER[A-Z0-9_]*=([a-z+]+://)|\\1$tab=\\3|
:url
s~^([0-9]+)$tab=rediss?://([^$tab]*@)?([A-Za-z0-9._-]*|[[][0-9A-Fa-f:]+[]])(:([0-9]+))?(/([0-9]*))?/?([?][^$tab@]*)?$tab.*~\\1 redis \\7 \\5 \\3~p
s|^([0-9]+)$tab=(redis[+])?socket://([^$tab]*@)?(/[^$tab?@]*)[?]([^$tab@]*\\&)?virtual_host=/?([0-9]+)([\\&][^$tab@]*)?$tab.*|\\1 socket \\6 \\4|p
s|^([0-9]+)$tab=(redis[+])?socket://([^$tab]*@)?(/[^$tab?@]*)$tab.*|\\1 socket 0 \\4|p
"
echo ---
unsuited=''
if [ -d /run/systemd/system ]; then
    naming='' path=''
    IFS=$nl
    for line in $(lines_of_units); do
        case $line in
        *.service.d/*.conf:*) text=${line#*.conf:} file='' ;;
        *) text=${line#*.service:} file=${line%%.service:*}.service ;;
        esac
        case $text in
        *cele[r]y*) [ "$file" = "$path" ] || naming="$naming$file$nl" path=$file ;;
        *) unsuited="$unsuited$line$nl" ;;
        esac
    done
    name_units $naming
    IFS=$words
    asked=' '
    for unit in $units; do
        case $asked in *" $unit "*) continue ;; esac
        is_ours "$unit" "$@" || asked="$asked$unit "
    done
    q="'"
    [ "$asked" = ' ' ] || systemctl show --property="$properties" -- $asked 2>/dev/null | sed -E '
/^ExecStart=.*[Cc][Ee][Ll][Ee][Rr][Yy].* multi /s/.*/RunsCelery=multi/
/^ExecStart=/s/.*[Cc][Ee][Ll][Ee][Rr][Yy].*/RunsCelery=yes/
/^ExecStart=/d
/^Environment=/{
s/[$]?"([A-Za-z_][A-Za-z0-9_]*=)(\\.|[^\\"])*"/\1/g
'"s/[$]?$q([A-Za-z_][A-Za-z0-9_]*=)(\\\\.|[^\\\\$q])*$q/\\1/g"'
s/(=| )([A-Za-z_][A-Za-z0-9_]*=)[^ ]*/\1\2/g
/^Environment=([A-Za-z_][A-Za-z0-9_]*=( |$))*$/!s/=.*/=?/
}'
fi
echo ---
printf %s "$unsuited"
echo ---
[ -z "$commands" ] || grep -saH '' $commands
:
