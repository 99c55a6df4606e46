#!/bin/sh
# journal_said.sh ENTRIES NOTABLE FAILURE OUTCOME UNIT…
# Of the last ENTRIES that these units have left in the journal, as JSON, those that fit the expression NOTABLE, and where
# one of these fits FAILURE, those that fit OUTCOME as well.
# shellcheck disable=SC2154 # dir is of frame.sh
entries=$1 notable=$2 failure=$3 outcome=$4
shift 4
for unit; do
    set -- "$@" -u "$unit"
    shift
done
journalctl --no-pager --output=json --output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT -n "$entries" "$@" 2>/dev/null >"$dir/journal"
if LC_ALL=C grep -qaE -e "$failure" "$dir/journal"; then notable="$notable|$outcome"; fi
LC_ALL=C grep -aE -e "$notable" "$dir/journal"
:
