#!/bin/sh
# systemd_start.sh UNIT
# Starts a unit, even if it failed too often. Does not wait for a start job that is already running: it may hang, as with
# Type=forking.
systemctl reset-failed -- "$1" 2>/dev/null
job=$(systemctl show --property=Job --value -- "$1")
wait=
[ -z "${job#0}" ] || wait=--no-block
# shellcheck disable=SC2086 # one word or none
systemctl start $wait -- "$1"
