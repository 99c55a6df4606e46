#!/bin/sh
# judge_systemd_all.sh NAME CONTENT NAME CONTENT…
# Asks systemd about several new units at once (CONTENT is in base64), which costs a host no more than one of them. If it
# finds a fault, each unit is judged separately afterwards, which shows the faulty one.
# shellcheck disable=SC2154 # dir is the frame's
mkdir "$dir/all" || exit 1
while [ $# -gt 0 ]; do
    printf %s "$2" | base64 -d >"$dir/all/$1" || exit 1
    shift 2
done
if output=$(verify "$dir"/all/*); then
    wrong=
    for unit in "$dir"/all/*; do
        case $output in *"${unit##*/}:"*) wrong=1 ;; esac
    done
    [ -n "$wrong" ] || : >"$dir/all-are-well"
fi
