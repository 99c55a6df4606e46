#!/bin/sh
# rotated.sh DIRECTORY
# Prints the lines of logrotate's files that may name logs, each after its file and number.
grep -sHn '^[[:space:]]*["/]' -- "${1%/*}/logrotate.conf" "$1"/*
:
