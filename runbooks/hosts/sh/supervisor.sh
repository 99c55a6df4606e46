#!/bin/sh
# supervisor.sh CTL PROGRAM QUESTION
# Runs a program in the Python of supervisorctl, which has supervisor's own code.
# **Source:** pip's scripts: if the path of the Python is long or contains a space, /bin/sh runs the second line.
# shellcheck disable=SC2016,SC2034 # what eval is given
ctl=$(command -v "$1") || {
    echo "supervisorctl does not exist: $1" >&2
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
