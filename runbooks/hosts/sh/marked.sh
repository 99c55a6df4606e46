#!/bin/sh
# marked PATH MARK: whether the first line of a file has the mark; never for a link, which may lead to a wanted unit. Without
# other programs: a process for each file would cost more than the rest of a look.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
marked() {
    first=
    [ ! -f "$1" ] || [ -L "$1" ] || IFS= read -r first <"$1"
    case $first in *"$2"*) ;; *) false ;; esac
}
