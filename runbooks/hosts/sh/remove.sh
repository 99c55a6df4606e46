#!/bin/sh
# remove.sh PATH DIGEST…
# Removes a file that has one of these digests.
enter "$1"
shift
unchanged "$@"
# shellcheck disable=SC2154 # enter sets it
rm -f "./$name" && sync .
