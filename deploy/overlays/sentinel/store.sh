#!/bin/sh
# Start this pod's Valkey as what two of the three Sentinels say it is: the master, or a replica of the master. Never on
# one Sentinel's word, which may be that of the cut-off side, and never on its own memory of having been the master.
# Arguments: those of valkey-server.
set -eu
name="$POD_NAME.pythonricing-store"

ask() {  # what each Sentinel answers
    for i in 0 1 2; do
        timeout 3 valkey-cli -e -h "pythonricing-sentinel-$i.pythonricing-sentinel" -p 26379 sentinel "$@" || true
    done 2>/dev/null
}

start() {
    # `min-replicas`: a master that is cut off stops admitting before the Sentinels (5 s) make another one.
    exec valkey-server "$@" --replica-announce-ip "$name" --min-replicas-to-write 1 --min-replicas-max-lag 3
}

said=
while :; do
    master="$(ask get-master-addr-by-name counters | grep -v '^[0-9]*$' | sort | uniq -d)"
    if [ -z "$master" ]; then
        why="waiting until two Sentinels name the same master"
    elif [ "$master" != "$name" ]; then
        start "$@" --replicaof "$master" 6379
    elif [ -e appendonlydir ] || ! ask replicas counters | grep -q .; then
        start "$@"
    else
        # Its volume is new, and an empty master would empty the replicas. (Where all data is gone, the Sentinels'
        # volumes must go too.)
        why="waiting until a replica is the master: this store has no data, the replicas do"
    fi
    [ "$why" = "$said" ] || echo "$why"
    said="$why"
    sleep 1
done
