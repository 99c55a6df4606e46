#!/usr/bin/env bash
# start_workers.sh [NAME ...]: starts the named workers, or all, in the background; a running one is not touched.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=workers_common.sh
. "$here/workers_common.sh"

readonly READY_TIMEOUT_S=30 LAST_LINES=15

# Sets `command` to the worker's command line.
set_command() {
    command=("${PRINTER_INVENTORY_PYTHON:-python3}" -m celery -A printer_inventory)
    case $1 in
        worker_high) add_worker "$1" high_priority 2 ;;
        worker_low) add_worker "$1" low_priority 2 ;;
        worker_daemon) add_worker "$1" daemon 1 ;;
        beat) command+=(beat "--schedule=$PRINTER_INVENTORY_HOME/run/beat-schedule" --pidfile= --loglevel=INFO) ;;
    esac
}

add_worker() {
    command+=(worker -n "$1@${PRINTER_INVENTORY_NODE_HOST:-sandbox}" -Q "$2" -c "$3" --pool=prefork
        --without-gossip --without-mingle --loglevel=INFO)
}

# Becomes the worker; the pid file is written by the process itself, so that none ever runs without one.
become() {
    local -a command stat
    local fd
    set_command "$1"
    read_stat "$BASHPID"
    printf '%s %s\n' "$BASHPID" "${stat[19]}" >"$(pid_file "$1").new"
    mv -- "$(pid_file "$1").new" "$(pid_file "$1")"
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        if ((fd > 2)); then
            exec {fd}>&-
        fi
    done
    exec setsid "${command[@]}"
}

# Sets `child`, `child_ticks` and `log_offset` of the process that becomes the worker.
spawn() {
    local log
    local -a stat
    log=$(log_file "$1")
    log_offset=$(log_size "$log")
    become "$1" </dev/null >>"$log" 2>&1 &
    child=$!
    read_stat "$child"
    child_ticks=${stat[19]}
}

log_size() {
    if [[ -e $1 ]]; then wc -c <"$1"; else printf '0'; fi
}

# Prints what NAME's log holds after its first OFFSET bytes.
new_log() { tail -c "+$(($2 + 1))" -- "$(log_file "$1")"; }

# True once the log shows that Celery is up, or keeps trying to reach its broker.
has_started() {
    grep -Eq '@.* ready\.|beat: Starting|Cannot connect to' <<<"$(new_log "$@")"
}

# await_worker NAME PID TICKS LOG_OFFSET: returns once the worker is up, fails if it dies before.
await_worker() {
    local deadline=$((SECONDS + READY_TIMEOUT_S))
    while ! has_started "$1" "$4"; do
        if ! is_alive "$2" "$3"; then
            printf '%s: died while starting; the end of %s:\n' "$1" "$(log_file "$1")" >&2
            new_log "$1" "$4" | tail -n "$LAST_LINES" >&2
            return 1
        fi
        if ((SECONDS >= deadline)); then
            printf '%s: alive (pid %s), but not ready within %s s\n' "$1" "$2" "$READY_TIMEOUT_S"
            return
        fi
        sleep 0.1
    done
    printf '%s: started (pid %s)\n' "$1" "$2"
}

main() {
    local name worker pid ticks child child_ticks log_offset failed=0
    local -a selected started=()
    load_environment
    select_workers "$@"
    mkdir -p -- "$PRINTER_INVENTORY_HOME/logs"
    cd -- "$here"
    for name in "${selected[@]}"; do
        lock_worker "$name"
        if is_running "$name"; then
            printf '%s: runs already (pid %s)\n' "$name" "$pid"
            continue
        fi
        # What a killed worker left behind would go on working beside the new one.
        [[ -z $ticks ]] || kill_session "$pid" "$ticks"
        spawn "$name"
        started+=("$name $child $child_ticks $log_offset")
    done
    for worker in ${started[@]+"${started[@]}"}; do
        read -r name child child_ticks log_offset <<<"$worker"
        await_worker "$name" "$child" "$child_ticks" "$log_offset" || failed=1
    done
    return "$failed"
}

main "$@"
