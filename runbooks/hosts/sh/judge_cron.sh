#!/bin/sh
# judge: cron silently ignores a file that does not belong to root.
# shellcheck disable=SC2317,SC2329 # write.sh calls it
judge() {
    [ "$(stat -c %u ./new)" = 0 ] || echo 'cron runs only files that belong to root;'
}
