#!/bin/sh
# directory.sh DIRECTORY
# Why it cannot be there; nothing where it is, or where this user may not look.
directory=$1
[ ! -d "$directory" ] || exit 0
if [ -e "$directory" ]; then
    echo "is no directory"
    exit 0
fi
above=$directory
while [ ! -e "$above" ]; do
    above=${above%/*}
    above=${above:-/}
done
[ ! -x "$above" ] || echo "is not there"
