#!/usr/bin/env bash
# workers_status.sh NAME: prints the worker's main pid; prints "stopped" and exits 3 when it does not run.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=workers_common.sh
. "$here/workers_common.sh"

readonly EXIT_NOT_RUNNING=3

[[ $# -eq 1 ]] || fail "$EXIT_USAGE" "usage: ${0##*/} NAME"
select_workers "$1"
load_environment
if is_running "$1"; then
    printf '%s\n' "$pid"
else
    printf 'stopped\n'
    exit "$EXIT_NOT_RUNNING"
fi
