#!/bin/sh
# write.sh PATH REPLACES DIGEST CONTENT MODE CHANGED_AT JUDGED USER…
# Write a file whose digest is REPLACES, or DIGEST already, beside the target, flush it, then rename it: a reader sees the
# old file or the new one, whole. CONTENT is in base64, CHANGED_AT may be ""; where it is JUDGED (not ""), nothing may be
# wrong with it, and each user has to exist.
# The new file is made in a folder of root's own inside the target's: there nobody else can put a link in its place while
# it is given its owner and mode, and nobody can move that folder elsewhere (rename(2)). The shell stands in the folders
# that it works in, so it does not matter where their names lead meanwhile. The temporary name is fixed, so what a killed
# run left is removed by the next; cron, logrotate and systemd ignore it.
# shellcheck disable=SC2154 # enter and unchanged set name, here and own
replaces=$2 digest=$3 content=$4 mode=$5 changed_at=$6 judged=$7
enter "$1"
shift 7
unchanged "$replaces" "$digest"
umask 077
set -C
{ mkdir -m 700 "./$own" && cd -P "./$own"; } || exit 1
# Its mode is looked at after it was entered: an access list of the folder around it would show there.
if [ "$(stat -c %d:%i ..)" != "$here" ] || [ "$(stat -c '%u %a' .)" != "$(id -u) 700" ] || [ -n "$(ls -A)" ]; then
    echo "somebody else changes the folder of $path while it is written" >&2
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
