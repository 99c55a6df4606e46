#!/bin/sh
# log_newer.sh PATH INODE FROM BYTES
# What was added to a log since it was read to FROM (bytes), at most BYTES of it, after the inode, where this begins and
# when the file was last changed. Of a file that was renamed the rest comes first; one that was replaced or cut off is read
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
