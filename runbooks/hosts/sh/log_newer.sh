#!/bin/sh
# log_newer.sh PATH INODE FROM BYTES
# Prints at most BYTES that were added to a log after FROM (bytes), after a line with the inode, the first byte's offset and
# the time of the last change. If the file was renamed, its rest comes first; a file that was replaced or truncated is read
# from its start.
path=$1 inode=$2 from=$3 bytes=$4
# shellcheck disable=SC2046 # its words
set -- $(state "$path" 2>/dev/null)
if [ "$1" != "$inode" ] || [ "$2" -lt "$from" ]; then
    new=$*
    before=$(before "$path")
    # shellcheck disable=SC2046
    set -- $(state "$before" 2>/dev/null)
    if [ "$1" = "$inode" ] && [ "$2" -gt "$from" ]; then
        path=$before
    elif [ -n "$new" ]; then
        # shellcheck disable=SC2086
        set -- $new
        from=0
    else
        exit 0
    fi
fi
echo "$1 $from $3"
tail -c "+$((from + 1))" -- "$path" | head -c "$bytes"
