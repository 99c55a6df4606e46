#!/bin/sh
# hold_unit.sh UNIT
# Until this shell ends, systemd does not restart the unit when its processes end, in spite of Restart=. A drop-in says so,
# which the next boot removes.
unit=$1
folder=/run/systemd/system/$unit.d
mkdir -p "$folder" || exit 1
printf '[Service]\nRestart=no\n' >"$folder/zz-taken-over.conf" || exit 1
trap 'release_unit "$unit"' EXIT
systemctl daemon-reload || exit 1
