#!/bin/sh
# journal_said.sh ENTRIES NOTABLE FAILURE OUTCOME UNIT…
# Prints those of the last ENTRIES of these units in the journal, as JSON, that match the expression NOTABLE; and if one of
# them matches FAILURE, also those that match OUTCOME.
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
