#!/bin/sh
# environment_of.sh DIRECTORY USER
# Prints the variables of a Celery worker or beat of the user that works in the directory, each as a word of the shell, on
# one line. Prints nothing if none can be read, or if a title has overwritten them. The variables of another user's process
# could make the application run that user's code.
# shellcheck disable=SC2013,SC3013 # words that are split have no spaces; -ef: dash and busybox have it
directory=$1 user=$2
LC_ALL=C
for path in $(grep -lsa 'cele[r]y' /proc/[0-9]*/cmdline); do
    one=${path%/cmdline}
    [ "$one/cwd" -ef "$directory" ] || continue
    grep -qsa 'PATH=' "$one/environ" || continue
    [ "$(stat -c %U -- "$one")" = "$user" ] || continue
    names "${one#/proc/}" worker || names "${one#/proc/}" beat || continue
    tr '\n\0' '\1\n' <"$one/environ" | sed "s/'/'\\\\''/g; s/^/'/; s/\$/'/" | tr '\n\1' ' \n'
    break
done
