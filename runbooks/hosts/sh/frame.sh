#!/bin/sh
# frame.sh MARK BEGINS_BY
# What comes before the fragments of a script: it exits with 75 where the host is up for longer than that many seconds
# ("": for as long as it likes). A process costs a small host a millisecond, and a piece of the answer that comes by
# itself as much here: so what all fragments say goes to files, which come back as one at the end, told apart by the mark,
# which nobody else knows. Neither umask nor locale is set here: a worker that a fragment starts would keep them.
# Without mktemp it exits with 71; mktemp makes a folder 0700. Where there is no room for one, /dev/shm has to do, and
# `full` is the folder without room; without room there, too, it exits with 70.
# shellcheck disable=SC2034,SC2317,SC2329 # the fragments' part of the script calls these
mark=$1
if [ -n "$2" ]; then
    read -r up _ </proc/uptime
    [ "${up%.*}" -lt "$2" ] || exit 75
fi
set --
full=
for folder in "${TMPDIR:-/tmp}" /dev/shm; do
    dir=$(mktemp -d "$folder/tmp.XXXXXXXXXX") || {
        [ $? -ne 127 ] || exit 71
        dir=
    }
    if [ -n "$dir" ]; then
        { echo "$mark" >"$dir/room"; } 2>/dev/null && break
        rm -rf "$dir"
    fi
    full=$folder dir=
done
[ -n "$dir" ] || exit 70
: >"$dir/room"
trap 'echo "$mark"; cat "$dir/$mark"*; rm -rf "$dir"' EXIT
# begins NUMBER: what this fragment prints comes now, and into no file.
begins() {
    echo "$mark$1 out"
}
# ended NUMBER CODE; what it printed is in the files of that number, 2 and 4.
ended() {
    code=$2
    echo "$mark$1 $code" >"$dir/$mark$1-1"
    echo "$mark$1 err" >"$dir/$mark$1-3"
}
