#!/bin/sh
# write.sh PATH REPLACES DIGEST CONTENT MODE CHANGED_AT JUDGED USER…
# Writes a file whose digest is REPLACES, or already DIGEST: writes a new file, flushes it, and renames it, so that a reader
# sees the old file or the new one, whole. CONTENT is in base64, CHANGED_AT may be ""; if JUDGED is not "", the judge must
# find no fault, and each user has to exist.
# The new file is created in a folder of root's own inside the target's folder. There no other user can replace it by a link
# while it gets its owner and mode, and no other user can move that folder (rename(2)). The shell stays in the folders that
# it works in, so their names may lead elsewhere meanwhile. The temporary name is fixed, so that the next run removes what a
# killed one has left; cron, logrotate and systemd ignore it.
# shellcheck disable=SC2154 # enter and unchanged set name, here and own
replaces=$2 digest=$3 content=$4 mode=$5 changed_at=$6 judged=$7
enter "$1"
shift 7
unchanged "$replaces" "$digest"
umask 077
set -C
{ mkdir -m 700 "./$own" && cd -P "./$own"; } || exit 1
# The mode is checked after entering, because it shows an access list of the surrounding folder.
if [ "$(stat -c %d:%i ..)" != "$here" ] || [ "$(stat -c '%u %a' .)" != "$(id -u) 700" ] || [ -n "$(ls -A)" ]; then
    echo "another process changes the folder of $path while it is written" >&2
    exit 1
fi
trap 'cd .. && rm -rf "./$own"' EXIT
printf %s "$content" | base64 -d >./new || exit 1
if [ -e "../$name" ]; then
    owner=$(stat -c %u:%g "../$name") || exit 1
    chown "$owner" ./new || exit 1
fi
chmod "$mode" ./new || exit 1
[ -z "$changed_at" ] || touch -d "@$changed_at" ./new || exit 1
if [ -n "$judged" ]; then
    said=$(judge "$path") || exit 1
    for user; do id -u "$user" >/dev/null 2>&1 || said="$said the user $user does not exist here;"; done
    [ -z "$said" ] || {
        printf '%s\n' "$said" >&2
        exit 1
    }
fi
sync ./new && mv -fT ./new "../$name" && sync ..
