#!/bin/sh
# judge PATH: systemd reads the kind of a unit from its name, so it checks a copy with the right name, in the script's own
# folder. Everything that it prints about this unit counts, warnings too: some versions ignore an unknown key with exit
# code 0.
# shellcheck disable=SC2317,SC2329,SC2154 # write.sh calls it; dir is the frame's
verify() {
    LC_ALL=C systemd-analyze verify --man=no --recursive-errors=no "$@" 2>&1
}
# shellcheck disable=SC2317,SC2329
judge() {
    [ ! -e "$dir/all-are-well" ] || return 0
    unit=${1##*/}
    cp ./new "$dir/$unit" || return 1
    if output=$(verify "$dir/$unit"); then
        printf '%s\n' "$output" | grep -F -e "$unit:"
    else
        printf '%s\n' "$output"
    fi
    :
}
