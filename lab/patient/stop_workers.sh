#!/usr/bin/env bash
# stop_workers.sh [NAME ...]: stops the named workers, or all; each may finish its tasks first.
# PRINTER_INVENTORY_STOP_TIMEOUT_S (30) bounds that; after it a worker gets QUIT, then KILL.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=workers_common.sh
. "$here/workers_common.sh"

readonly QUIT_TIMEOUT_S=5 KILL_TIMEOUT_S=5

# signal_main SIGNAL PID TICKS: to the main process alone, which ends its pool itself.
signal_main() {
    if is_alive "$2" "$3"; then
        kill "-$1" "$2" 2>/dev/null || true
    fi
}

# await_gone PID TICKS DEADLINE: returns once the process and its session are gone, fails at the deadline.
await_gone() {
    while is_alive "$1" "$2" || [[ -n $(session_members "$1" "$2") ]]; do
        ((SECONDS < $3)) || return
        sleep 0.1
    done
}

# Begins the end of the process PID TICKS; nothing else ends what a dead main process left behind.
ask() {
    if is_alive "$1" "$2"; then
        signal_main TERM "$1" "$2"
    else
        kill_session "$1" "$2"
    fi
}

# finish PID TICKS DEADLINE: waits, insists, kills.
finish() {
    await_gone "$1" "$2" "$3" && return
    signal_main QUIT "$1" "$2"
    await_gone "$1" "$2" "$((SECONDS + QUIT_TIMEOUT_S))" && return
    kill_session "$1" "$2"
    await_gone "$1" "$2" "$((SECONDS + KILL_TIMEOUT_S))"
}

main() {
    local name pid ticks deadline worker failed=0
    local -a selected asked=()
    load_environment
    select_workers "$@"
    for name in "${selected[@]}"; do
        lock_worker "$name"
        read_pid_file "$name"
        if [[ -z $ticks ]]; then
            printf '%s: stopped already\n' "$name"
            continue
        fi
        ask "$pid" "$ticks"
        asked+=("$name $pid $ticks")
    done
    deadline=$((SECONDS + ${PRINTER_INVENTORY_STOP_TIMEOUT_S:-30}))
    for worker in ${asked[@]+"${asked[@]}"}; do
        read -r name pid ticks <<<"$worker"
        if finish "$pid" "$ticks" "$deadline"; then
            rm -f -- "$(pid_file "$name")"
            printf '%s: stopped\n' "$name"
        else
            printf '%s: pid %s or its children cannot be ended\n' "$name" "$pid" >&2
            failed=1
        fi
    done
    return "$failed"
}

main "$@"
