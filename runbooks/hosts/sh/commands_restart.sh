#!/bin/sh
# commands_restart.sh DIRECTORY STOP START SECONDS PROCESSES STATUS…
# Stops, waits up to SECONDS until the old processes have ended, then starts. These are the PROCESSES (PID:START …) and those
# that the status commands name.
directory=$1 stop=$2 start=$3 end=$(($(date +%s) + $4)) running=$5
shift 5
started() {
    read -r stat 2>/dev/null <"/proc/$1/stat" || return
    # shellcheck disable=SC2086 # its words
    set -- "$1" ${stat##*) }
    echo "$1:${21}"
}
for status; do
    pid=$(cd "$directory" && eval "$status" 2>/dev/null | sed -n '/^[0-9][0-9]*$/{p;q;}')
    [ -z "$pid" ] || running="$running $(started "$pid")"
done
set --
{ cd "$directory" && eval "$stop"; } || exit
for one in $running; do
    while alive "$one"; do
        if [ "$(date +%s)" -ge "$end" ]; then
            case $(grep -E '^(State|ShdPnd)' "/proc/${one%:*}/status") in
            *T\ \(*) what="the process is stopped: kill -CONT ${one%:*} continues it" ;;
            *[4-7c-f]???) what='TERM is pending: the process hangs' ;;
            *) what='no TERM is pending: if it was sent, the process has received it and ends after its tasks' ;;
            esac
            echo "the stop command ran, but pid ${one%:*} still runs, so no second one was started; $what;" \
                'when it has ended, run this again: nothing else starts it' >&2
            exit 1
        fi
        sleep 0.2
    done
done
cd "$directory" && eval "$start"
