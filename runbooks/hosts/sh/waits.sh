#!/bin/sh
# waits.sh PID…
# Prints twice, a moment apart: the system call of each thread of these processes, as PID TID CALL ARGUMENTS. A separate
# line precedes the second time.
calls() {
    for pid; do
        for thread in "/proc/$pid/task"/*; do
            read -r call <"$thread/syscall" || call=
            printf '%s %s %s\n' "$pid" "${thread##*/}" "$call"
        done
    done
} 2>/dev/null
calls "$@"
sleep 0.2 2>/dev/null || sleep 1
echo ---
calls "$@"
