#!/bin/sh
# state PATH: prints the inode of a file, its size, and when it was last changed.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call both
state() {
    LC_ALL=C stat -L -c '%i %s %.Y' -- "$1"
}
# before PATH: prints the newest rotated file of a log that is not compressed.
# shellcheck disable=SC2317,SC2329,SC2010 # ls sorts by time
before() {
    ls -t -- "$1"[.-][0-9]* 2>/dev/null | grep '[.-][0-9][0-9._-]*$' | head -n 1
}
