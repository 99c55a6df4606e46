#!/bin/sh
# end.sh SECONDS KILL PID:START…
# Sends TERM to each process that is still the same as in the look, so that a worker finishes its tasks; after SECONDS,
# sends KILL if KILL is not "". Skips processes whose parent is among them: a worker ends its own children, and TERM to
# these loses their tasks.
end=$(($(date +%s) + $1)) kill=$2
shift 2
parent() {
    read -r stat <"/proc/${1%:*}/stat"
    # shellcheck disable=SC2086 # its words
    set -- ${stat##*) }
    echo "$2"
}
for one; do
    alive "$one" || continue
    case " $*" in *" $(parent "$one"):"*) ;; *) kill -TERM "${one%:*}" ;; esac
done
while :; do
    left=
    for one; do ! alive "$one" || left="$left $one"; done
    if [ -z "$left" ] || [ "$(date +%s)" -ge "$end" ]; then break; fi
    sleep 0.2
done
[ -n "$left" ] || exit 0
if [ -z "$kill" ]; then
    echo "got TERM and still run, perhaps a task:$left" >&2
    exit 1
fi
for one in $left; do kill -KILL "${one%:*}"; done
echo "did not end after TERM, and were killed:$left"
