#!/bin/sh
# log_pieces.sh PATH [INODE FROM SIZE]…
# Prints pieces of a log and of its rotated file, under their present names; FROM counts from 1.
path=$1
shift
before=$(before "$path")
this=$(state "$path" 2>/dev/null)
that=$(state "$before" 2>/dev/null)
while [ $# -gt 0 ]; do
    case $1 in
    "${this%% *}") file=$path ;;
    "${that%% *}") file=$before ;;
    *) exit 1 ;;
    esac
    tail -c "+$2" -- "$file" | head -c "$3"
    shift 3
done
