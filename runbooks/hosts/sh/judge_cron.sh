#!/bin/sh
# judge: cron says nothing of a file that is not root's, it just never runs it.
# shellcheck disable=SC2317,SC2329 # write.sh calls it
judge() {
    [ "$(stat -c %u ./new)" = 0 ] || echo 'cron runs only files that belong to root;'
}
