#!/bin/sh
# unwritable.sh FOLDER…
# Prints the folders that exist and that this user may not write to, each with the user; a NUL ends each word.
for folder; do
    [ ! -d "$folder" ] || [ -w "$folder" ] || printf '%s\0' "$folder" "$(id -un)"
done
