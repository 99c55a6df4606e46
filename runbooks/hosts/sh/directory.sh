#!/bin/sh
# directory.sh DIRECTORY
# Prints why the directory cannot exist; nothing if it exists, or if this user may not see it.
directory=$1
[ ! -d "$directory" ] || exit 0
if [ -e "$directory" ]; then
    echo "is not a directory"
    exit 0
fi
above=$directory
while [ ! -e "$above" ]; do
    above=${above%/*}
    above=${above:-/}
done
[ ! -x "$above" ] || echo "does not exist"
