#!/bin/sh
# worker_logs.sh BYTES NOTABLE FAILURE OUTCOME
# Prints lines of the logs that the Celery processes of the census write: the files that they have open for writing only,
# the last BYTES of each. Nothing if no line matches the expression NOTABLE. Otherwise the host's offset from UTC; then,
# after "==> /proc/PID/fd/N <==", the lines that do; and if one of them matches FAILURE, also those that match OUTCOME. The
# link of an open file leads to it even if the file was renamed, or is in a container.
# shellcheck disable=SC2154 # dir is of frame.sh
bytes=$1 notable=$2 failure=$3 outcome=$4
read -r mains <"$dir/mains" || exit 0
set --
for pid in $mains; do set -- "$@" "/proc/$pid/fd"; done
[ $# -gt 0 ] || exit 0
# shellcheck disable=SC2012 # what ls prints of links is of one form; each file is read once
files=$(ls -ln -- /proc/self/ns "$@" 2>/dev/null | sed -nE \
    's|^(/proc/[0-9]+/fd):$|=\1|p; s|^l-wx.* ([0-9]+) -> (/.*)$|\1 \2|p' | while read -r number path; do
    case $number in
    =*) folder=${number#=} ;;
    *)
        case $path in /dev/* | /proc/*) continue ;; esac
        case $seen in *"|$path|"*) continue ;; esac
        seen="$seen|$path|"
        echo "$folder/$number"
        ;;
    esac
done)
[ -n "$files" ] || exit 0
LC_ALL=C
export LC_ALL
# shellcheck disable=SC2086 # paths of /proc
tail -q -c "$bytes" -- $files 2>/dev/null | grep -qaE -e "$notable" || exit 0
date +%z
# The line of a warm shutdown has no time, so it takes the time of the line before it.
with_times() { sed -n '/^worker: Warm shutdown/{x;G;s/^\(.\{0,26\}\)[^\n]*\n/\1 /p;x;d;}; p; /./h'; }
# shellcheck disable=SC2086
notable_lines() {
    tail -v -c "$bytes" -- $files 2>/dev/null | with_times | grep -aE -e '^==> /proc/' -e "$1" | cut -b 1-500
}
notable_lines "$notable" >"$dir/notable"
if grep -qaE -e "$failure" "$dir/notable"; then notable_lines "$notable|$outcome"; else cat "$dir/notable"; fi
