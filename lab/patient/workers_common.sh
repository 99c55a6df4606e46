# shellcheck shell=bash
# What the worker scripts share: the site's environment, the workers' names, and who of them runs.
#
# A pid file holds "PID STARTTICKS": a recycled pid has other start ticks and is never taken for the worker.
# Every worker leads a session of its own, so its pool processes are found by the session, even after its death.

readonly ALL_WORKERS=(worker_high worker_low worker_daemon beat)
readonly EXIT_USAGE=64 EXIT_CONFIG=78

fail() {
    printf '%s: %s\n' "${0##*/}" "$2" >&2
    exit "$1"
}

load_environment() {
    [[ -n ${PRINTER_INVENTORY_HOME:-} ]] ||
        fail "$EXIT_CONFIG" 'PRINTER_INVENTORY_HOME is not set; set it to the absolute path of the directory of printer_inventory.env'
    [[ $PRINTER_INVENTORY_HOME == /* ]] ||
        fail "$EXIT_CONFIG" "PRINTER_INVENTORY_HOME is not an absolute path: $PRINTER_INVENTORY_HOME"
    local env_file=$PRINTER_INVENTORY_HOME/printer_inventory.env
    [[ -r $env_file ]] || fail "$EXIT_CONFIG" "cannot read $env_file"
    set -a
    # shellcheck source=/dev/null
    . "$env_file"
    set +a
}

is_known() {
    local worker
    for worker in "${ALL_WORKERS[@]}"; do
        [[ $worker == "$1" ]] && return
    done
    return 1
}

# Sets `selected` to the named workers, or to all, in a fixed order: two calls that lock several never wait in a ring.
select_workers() {
    local name worker
    for name in "$@"; do
        is_known "$name" || fail "$EXIT_USAGE" "no worker is called $name; there are ${ALL_WORKERS[*]}"
    done
    # shellcheck disable=SC2034  # the caller's
    selected=()
    for worker in "${ALL_WORKERS[@]}"; do
        if [[ $# -eq 0 || " $* " == *" $worker "* ]]; then
            selected+=("$worker")
        fi
    done
}

pid_file() { printf '%s/run/%s.pid' "$PRINTER_INVENTORY_HOME" "$1"; }
log_file() { printf '%s/logs/%s.log' "$PRINTER_INVENTORY_HOME" "$1"; }

# Holds the worker's lock until this script exits; the lock file stays, for a removed one could be locked twice.
lock_worker() {
    local lock_fd
    mkdir -p -- "$PRINTER_INVENTORY_HOME/run"
    exec {lock_fd}>"$PRINTER_INVENTORY_HOME/run/$1.lock"
    flock "$lock_fd"
}

# Sets `stat` to the fields of /proc/PID/stat from the third on: [0] state, [3] session, [19] start ticks.
read_stat() {
    local line
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return
    # The second field is the command's name in parentheses, which may hold anything but ends at the last ")".
    read -ra stat <<<"${line##*) }"
}

is_alive() {
    local -a stat
    read_stat "$1" && [[ ${stat[19]} == "$2" && ${stat[0]} != [ZX] ]]
}

# Sets `pid` and `ticks` to what the worker's pid file says, empty without one.
read_pid_file() {
    pid='' ticks=''
    { read -r pid ticks <"$(pid_file "$1")"; } 2>/dev/null || true
}

is_running() {
    read_pid_file "$1"
    [[ -n $pid && -n $ticks ]] && is_alive "$pid" "$ticks"
}

# Prints the living processes of the session that the process PID TICKS led or leads.
session_members() {
    local entry member
    local -a stat
    # A later process with the same pid, and its session, are strangers.
    if read_stat "$1" && [[ ${stat[19]} != "$2" ]]; then
        return
    fi
    for entry in /proc/[0-9]*; do
        member=${entry#/proc/}
        if read_stat "$member" && [[ ${stat[3]} == "$1" && ${stat[0]} != [ZX] ]] && ((stat[19] >= $2)); then
            printf '%s\n' "$member"
        fi
    done
}

kill_session() {
    local member
    for member in $(session_members "$1" "$2"); do
        kill -KILL "$member" 2>/dev/null || true
    done
}
