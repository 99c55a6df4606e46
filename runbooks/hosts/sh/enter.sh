#!/bin/sh
# enter PATH: enters the folder that PATH is in, one name after the other; leaves the file's own name in $name and what
# the folder is in $here. The file behind a link is meant; not behind one that leads to anything else (a masked unit's to
# /dev/null). Where others than root and this user may put links, one leads no further than to a folder of whoever put it
# there: what is written on their word must be theirs to write. A name that was no link when it was looked at and is one
# now shows by its parent.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
enter() {
    path=$1
    refuse() {
        echo "$path leads through a link that others can change ($1): name the file that is meant" >&2
        exit 1
    }
    [ -d "${path%/*}/" ] || {
        echo "the directory ${path%/*} does not exist" >&2
        exit 1
    }
    rest=$path by=
    cd / || exit 1
    here=$(stat -c %d:%i .) || exit 1
    while :; do
        while [ "$rest" != "${rest#/}" ]; do rest=${rest#/}; done
        name=${rest%%/*}
        rest=${rest#"$name"}
        if [ -L "./$name" ] && { [ -n "$rest" ] || [ -f "./$name" ]; }; then
            kept=$(stat -c '%u %A' .) || exit 1
            case $kept in
            "0 d"????-??-?* | "$(id -u) d"????-??-?*) ;;
            *)
                of=$(stat -c %u "./$name") || exit 1
                if [ "$of" = 0 ] || [ "${by:-$of}" != "$of" ]; then refuse "$name"; fi
                by=$of
                ;;
            esac
            to=$(readlink "./$name") || exit 1
            rest=$to$rest
            case $rest in /*)
                cd / || exit 1
                here=$(stat -c %d:%i .) || exit 1
                ;;
            esac
            continue
        fi
        [ -n "$rest" ] || break
        cd -P "./$name" || exit 1
        was=$here
        here=$(stat -c %d:%i .) || exit 1
        case $name in . | ..) ;; *) [ "$(stat -c %d:%i ..)" = "$was" ] || refuse "$name" ;; esac
    done
    [ -z "$by" ] || [ "$(stat -c %u .)" = "$by" ] || refuse "$name"
}
# unchanged DIGEST…: goes on where the file that was entered for has one of these (a sha256, or absent); else it exits
# with 7. What a killed run left beside it is removed.
# shellcheck disable=SC2317,SC2329
unchanged() {
    now=absent
    if [ -e "./$name" ]; then
        now=$(sha256sum <"./$name") || exit 1
        now=${now%% *}
    fi
    case " $* " in *" $now "*) ;; *)
        echo "$path has changed since it was looked at" >&2
        exit 7
        ;;
    esac
    own=.$name.celery-runbooks
    rm -rf "./$own" || exit 1
}
