#!/bin/sh
# unwritable.sh FOLDER…
# Those of these folders that are there and that this user may not write in, each with the user; all ended by a NUL.
for folder; do
    [ ! -d "$folder" ] || [ -w "$folder" ] || printf '%s\0' "$folder" "$(id -un)"
done
