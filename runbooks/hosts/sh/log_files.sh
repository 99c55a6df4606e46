#!/bin/sh
# state PATH: the inode of a file, its size, and when it was last changed.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call both
state() {
    LC_ALL=C stat -L -c '%i %s %.Y' -- "$1"
}
# before PATH: the newest file that a rotation has put beside a log, as far as it is not compressed.
# shellcheck disable=SC2317,SC2329,SC2010 # ls sorts by time
before() {
    ls -t -- "$1"[.-][0-9]* 2>/dev/null | grep '[.-][0-9][0-9._-]*$' | head -n 1
}
