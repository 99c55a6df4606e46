#!/bin/sh
# judge PATH: supervisor's own code reads a configuration of this file alone, because one mistake keeps supervisord from
# reading all files, and from starting. Without a supervisorctl on PATH, it does not judge.
# shellcheck disable=SC2034,SC2317,SC2329,SC2154,SC2016 # write.sh calls it; dir is the frame's; eval is given its arguments
judge() {
    ctl=$(command -v supervisorctl) || return 0
    { read -r first && read -r second; } <"$ctl" || return 0
    case $first in
    '#!/bin/sh') python=${second#"'''exec' "} python=${python%' "$0" "$@"'} ;;
    *) python=${first#'#!'} ;;
    esac
    { printf '[supervisord]\n' && cat ./new; } >"$dir/judged.conf" || return 1
    read_it='import sys; from supervisor.options import ServerOptions; options = ServerOptions(); options.here = "/"'
    read_it="$read_it; options.read_config(sys.argv[1])"
    (cd / && eval "$python -c" '"$read_it" "$dir/judged.conf"') 2>&1 | sed -n 's/^ValueError: //p'
}
