#!/bin/sh
# option_lines.sh DIRECTORY QUEUES FILE…
# Finds where the files that start workers name a queue, a node or a number of processes, as PATH:LINE:WHAT: the option with
# its value, and each of the QUEUES (an extended regular expression) as a word of its own. The files are the FILEs, which
# may be relative to the directory and are read only if small, as scripts are, and the units of systemd with their drop-ins.
# No other part of a line is printed.
directory=$1 queues=$2
shift 2
cd "$directory" 2>/dev/null || exit 0
for file; do
    shift
    [ ! -f "$file" ] || [ "$(wc -c <"$file")" -gt 65536 ] || set -- "$@" "$file"
done
[ ! -d /run/systemd/system ] || set -- "$@" /etc/systemd/system/*.service /etc/systemd/system/*.service.d/*.conf \
    /run/systemd/system/*.service /run/systemd/system/*.service.d/*.conf /usr/local/lib/systemd/system/*.service \
    /lib/systemd/system/*cele*.service /lib/systemd/system/*cele*.service.d/*.conf
[ $# -gt 0 ] || exit 0
count='[[:space:]=]*"?([$%{]+[[:alnum:]]+|[0-9]+)' value='[[:space:]=]*[^[:space:]=]+'
grep -saHnoE -e "(^|[^[:alnum:]-])((-Q|--queues)$value|(-n|--hostname)[[:space:]=]*[^[:space:]]*[@%][^[:space:]]*|(-c|--concurrency)$count)" -- "$@"
[ -z "$queues" ] || grep -saHnowE -e "$queues" -- "$@"
:
