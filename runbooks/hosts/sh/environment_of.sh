#!/bin/sh
# environment_of.sh DIRECTORY USER MODULE
# Prints the variables of a Celery worker or beat of the user that works in the directory, each a word of the shell, on
# one line: of one whose -A names the application's module, else of one that names none. Prints nothing if none can be
# read, or if a title has overwritten them. The variables of another user's process could make the application run that
# user's code; those of another application may name its broker.
# shellcheck disable=SC2013,SC2020,SC3013 # words that are split have no spaces; tr takes sets; -ef: dash, busybox
directory=$1 user=$2 module=$3
LC_ALL=C
module_of() {
    tr '\0 (' '\n\n\n' <"$1/cmdline" |
        sed -n 's/^--app=//p; s/^-A\(..*\)/\1/p; /^-A$/{n;p;}; /^--app$/{n;p;}' | sed 's/[.:)].*//; q'
}
found=
for path in $(grep -lsa 'cele[r]y' /proc/[0-9]*/cmdline); do
    one=${path%/cmdline}
    [ "$one/cwd" -ef "$directory" ] || continue
    grep -qsa 'PATH=' "$one/environ" || continue
    [ "$(stat -c %U -- "$one")" = "$user" ] || continue
    names "${one#/proc/}" worker || names "${one#/proc/}" beat || continue
    named=$(module_of "$one" 2>/dev/null)
    [ -z "$named" ] && found=$one
    [ "$named" = "$module" ] && found=$one && break
done
[ -z "$found" ] || tr '\n\0' '\1\n' <"$found/environ" | sed "s/'/'\\\\''/g; s/^/'/; s/\$/'/" | tr '\n\1' ' \n'
