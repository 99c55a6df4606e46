#!/bin/sh
# supervisor.sh CTL PROGRAM QUESTION
# Runs a program in the Python of supervisorctl, for that one has supervisor's own code.
# **Source:** pip's scripts: where the path of the Python is long or has a space, /bin/sh runs the second line.
# shellcheck disable=SC2016,SC2034 # what eval is given
ctl=$(command -v "$1") || {
    echo "there is no supervisorctl: $1" >&2
    exit 127
}
program=$2 question=$3
{ read -r first && read -r second; } <"$ctl" || exit 1
case $first in
'#!/bin/sh') python=${second#"'''exec' "} python=${python%' "$0" "$@"'} ;;
*) python=${first#'#!'} ;;
esac
cd /
eval "$python -c" '"$program" "$question"'
