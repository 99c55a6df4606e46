#!/bin/sh
# hold_unit.sh UNIT
# Until this shell ends, systemd does not start the unit again when its processes end, whatever Restart= says. It is told so
# in a drop-in that goes with the next boot.
unit=$1
folder=/run/systemd/system/$unit.d
mkdir -p "$folder" || exit 1
printf '[Service]\nRestart=no\n' >"$folder/zz-taken-over.conf" || exit 1
trap 'release_unit "$unit"' EXIT
systemctl daemon-reload || exit 1
