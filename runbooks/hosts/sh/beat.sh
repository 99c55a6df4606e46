#!/bin/sh
# beat.sh SCHEDULE
# Prints when beat's schedule was last written; the libraries that keep it add endings of their own to its name.
LC_ALL=C stat -L -c '%.Y %n' -- "$1" "$1.db" "$1.pag" "$1.dat" "$1.dir" 2>/dev/null | sort -rn | head -n 1
