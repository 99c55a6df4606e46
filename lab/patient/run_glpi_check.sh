#!/usr/bin/env bash
# run_glpi_check.sh sync|async|status TASK_ID: the check of all printers in GLPI, here, queued, or how it stands.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=workers_common.sh
. "$here/workers_common.sh"

case $#:${1:-} in
    1:sync) arguments=(--sync) ;;
    1:async) arguments=() ;;
    2:status) arguments=(--status "$2") ;;
    *) fail "$EXIT_USAGE" "usage: ${0##*/} sync|async|status TASK_ID" ;;
esac
load_environment
cd -- "$here"
exec "${PRINTER_INVENTORY_PYTHON:-python3}" manage.py check_glpi ${arguments[@]+"${arguments[@]}"}
