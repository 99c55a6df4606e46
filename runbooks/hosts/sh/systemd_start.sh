#!/bin/sh
# systemd_start.sh UNIT
# Start a unit, one that failed too often, too. A job that is under way for it may hang, as with Type=forking, so nobody
# waits for that one.
systemctl reset-failed -- "$1" 2>/dev/null
job=$(systemctl show --property=Job --value -- "$1")
wait=
[ -z "${job#0}" ] || wait=--no-block
# shellcheck disable=SC2086 # one word or none
systemctl start $wait -- "$1"
