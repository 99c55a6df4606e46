# shellcheck shell=sh
# One ssh a host, all at once, each with the whole job in one script. sh limit.sh restart|start
while read -r name _; do
    ssh -F "$BENCH_STATE/ssh_config" "$name" sudo sh -s <"$BENCH_STATE/scripts/$1.$name" >"$BENCH_STATE/out.$name" 2>&1 &
    pids="$pids $!"
done <"$BENCH_STATE/hosts"
for pid in $pids; do wait "$pid" || exit 1; done
