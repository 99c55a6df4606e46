#!/bin/sh
# cron_lines.sh MARK TEXT…
# Finds lines with which cron, or the boot, starts a command with one of these texts: path, line number, schedule. Skips
# our own files, which have the mark.
mark=$1
shift
for path in /etc/crontab /etc/cron.d/* /var/spool/cron/crontabs/* /var/spool/cron/* /etc/rc.local; do
    { [ -f "$path" ] && [ -r "$path" ]; } || continue
    ! marked "$path" "$mark" || continue
    for text; do grep -nF -e "$text" "$path"; done | grep -Ev '^[0-9]+:[[:space:]]*#' | sort -nu | while IFS=: read -r number line; do
        set -f
        # shellcheck disable=SC2086 # its words
        set -- $line
        case $1 in @*) when=$1 ;; *) when= ;; esac
        printf '%s\t%s\t%s\n' "$path" "$number" "$when"
    done
done
:
