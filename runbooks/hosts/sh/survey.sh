#!/bin/sh
# survey.sh PIDS
# Prints the host's own name and the current user; then, a line each, for each of these processes: its pid, its folder, its
# program, the Python of the packages that it has mapped, the files that it prints into, and its command, with tabs between
# the words; then for each supervisord its pid, its folder, the supervisorctl beside it, and its command: only for those of
# root and of the current user, because that supervisorctl is run.
# Paths of a container are paths inside it.
# shellcheck disable=SC2013 # words that are split have no spaces
uname -n
id -un
echo ---
command_of() {
    tr '\0\n\t' '\t  ' <"$1/cmdline"
    echo
}
for pid in $1; do
    one=/proc/$pid
    [ -r "$one/cmdline" ] || continue
    printf 'pid %s\n' "$pid"
    printf 'directory %s\n' "$(readlink "$one/cwd")"
    printf 'program %s\n' "$(readlink "$one/exe")"
    prefix=$(sed -nE 's#^[^/]*(/.*)/lib(64)?/python[0-9.]*/(site|dist)-packages/.*#\1#p' "$one/maps" | sed -n 1p)
    for name in python python3; do
        if [ -z "$prefix" ] || [ ! -x "$one/root$prefix/bin/$name" ]; then continue; fi
        printf 'python %s\n' "$prefix/bin/$name"
        break
    done
    for stream in 1 2; do
        to=$(readlink "$one/fd/$stream")
        case $to in /dev/*) ;; /*) printf 'log %s\n' "$to" ;; esac
    done
    printf 'words '
    command_of "$one"
done 2>/dev/null
echo ---
for path in $(grep -lsx supervisord /proc/[0-9]*/comm); do
    one=${path%/comm}
    case $(stat -c %U -- "$one") in root | "$(id -un)") ;; *) continue ;; esac
    command=$(command_of "$one")
    [ -n "$command" ] || continue
    printf 'pid %s\n' "${one#/proc/}"
    printf 'directory %s\n' "$(readlink "$one/cwd")"
    printf 'words %s\n' "$command"
    (
        IFS='	'
        for word in $command; do
            case $word in /*/supervisord) [ ! -x "${word%d}ctl" ] || printf 'ctl %s\n' "${word%d}ctl" ;; esac
        done
    )
done 2>/dev/null
:
