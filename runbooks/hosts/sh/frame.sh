#!/bin/sh
# frame.sh MARK BEGINS_BY
# The start of a script, before its fragments. It exits with 75 if the host has been up for longer than BEGINS_BY seconds
# ("": no limit). A process costs a small host a millisecond, and each separate piece of the answer costs as much here. So
# the output of all fragments goes to files, which come back as one at the end, separated by the mark, a secret of this
# run. This does not set umask or locale: a worker that a fragment starts would keep them.
# Without mktemp it exits with 71; mktemp creates a folder with mode 0700. If the disk is full, it uses /dev/shm, and `full`
# is the full folder; if that is full too, it exits with 70.
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
# begins NUMBER: this fragment prints directly, not into a file.
begins() {
    echo "$mark$1 out"
}
# ended NUMBER CODE: its output is in the files 2 and 4 of that number.
ended() {
    code=$2
    echo "$mark$1 $code" >"$dir/$mark$1-1"
    echo "$mark$1 err" >"$dir/$mark$1-3"
}
