#!/bin/sh
# release_unit UNIT: undoes hold_unit.sh.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
release_unit() {
    [ -e "/run/systemd/system/$1.d/zz-taken-over.conf" ] || return 0
    rm -f "/run/systemd/system/$1.d/zz-taken-over.conf"
    rmdir --ignore-fail-on-non-empty "/run/systemd/system/$1.d"
    systemctl daemon-reload
}
