#!/bin/sh
# enter PATH: enters the folder of PATH, one name after the other; sets $name to the file's own name, and $here to the
# folder's identity. A link to a file stands for that file, but not a link to anything else (a masked unit's, to /dev/null).
# If users other than root and this one may create links, a link may only lead to a folder of its own owner: a file that is
# written because of a user's link must be that user's to write. A name that became a link since the check shows by its
# parent.
# shellcheck disable=SC2317,SC2329 # scripts that come after this call it
enter() {
    path=$1
    refuse() {
        echo "$path leads through a link that others can change ($1): give the path of the file itself" >&2
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
# unchanged DIGEST…: goes on if the file that was entered has one of these digests (a sha256, or absent); otherwise it exits
# with 7. Removes what a killed run has left beside it.
# shellcheck disable=SC2317,SC2329
unchanged() {
    now=absent
    if [ -e "./$name" ]; then
        now=$(sha256sum <"./$name") || exit 1
        now=${now%% *}
    fi
    case " $* " in *" $now "*) ;; *)
        echo "$path has changed since the look" >&2
        exit 7
        ;;
    esac
    own=.$name.celery-runbooks
    rm -rf "./$own" || exit 1
}
