#!/bin/sh
# log_start.sh PATH BYTES CANDIDATES LINES
# Prints the host's offset and zone; the states of a log and of its rotated file, zeros if there is none; then, from the last
# BYTES of each, the last LINES that match the expression CANDIDATES.
path=$1 bytes=$2 candidates=$3 lines=$4
before=$(before "$path")
{ name=$TZ; [ "$name" ] || name=$(readlink /etc/localtime) || read -r name </etc/timezone; } 2>/dev/null
echo "$(date +%z) $name"
state "$path" || {
    path=
    echo 0 0 0
}
{ [ "$before" ] && state "$before"; } || echo 0 0 0
for file in "$before" "$path"; do
    [ -z "$file" ] || tail -c "$bytes" -- "$file"
done | LC_ALL=C grep -aE -e "$candidates" | tail -n "$lines" | cut -b 1-200
