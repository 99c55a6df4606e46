#!/bin/sh
# judge: logrotate reports a mistake among much other output, and exits with 0.
# shellcheck disable=SC2317,SC2329 # write.sh calls it
judge() {
    if command -v logrotate >/dev/null; then
        LC_ALL=C logrotate -d ./new 2>&1 | grep '^error:'
    else
        echo 'logrotate is not installed on this host'
    fi
    :
}
