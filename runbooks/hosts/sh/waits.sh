#!/bin/sh
# waits.sh PID…
# Twice, a moment apart: what each thread of these processes does in the kernel, as PID TID CALL ARGUMENTS. The second
# time after a line of its own.
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
