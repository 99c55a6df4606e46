#!/bin/sh
# unit_source.sh UNIT
# Prints what else starts the unit, a word each; the links by which it starts with the host, each with its target; the text
# of its files, drop-ins last. A link of another name that leads to it is an alias, which enabling also creates.
unit=$1
systemctl show --property=TriggeredBy,WantedBy,RequiredBy,BoundBy --value -- "$unit" | tr ' ' '\n' | grep .
echo ---
for folder in /etc/systemd/system /run/systemd/system; do
    [ ! -d "$folder" ] || find "$folder" -maxdepth 2 -type l \( -path '*.wants/*' -o -path '*.requires/*' -o -lname "*$unit" \) \
        \( ! -path "$folder/$unit" \) \( -name "$unit" -o -lname "$unit" -o -lname "*/$unit" \)
done | while IFS= read -r path; do
    printf '%s\t%s\n' "$path" "$(readlink "$path")"
done
echo ---
systemctl cat --no-pager -- "$unit"
