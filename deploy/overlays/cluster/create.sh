#!/bin/sh
# Make one cluster of the six nodes: 0, 1 and 2 are masters, 3, 4 and 5 their replicas. Once all slots are given out it
# is made, and failovers may have changed who is what: then nothing is touched. Until then every step may be repeated.
set -eu

node() {  # send a command to a node
    i="$1"
    shift
    timeout 5 valkey-cli -e -h "pythonricing-store-$i.pythonricing-store" "$@"
}

for i in 0 1 2 3 4 5; do
    echo "waiting for node $i to know the others"
    until node "$i" cluster info 2>/dev/null | grep '^cluster_known_nodes:[6-9]'; do sleep 1; done
    if node "$i" cluster info | grep '^cluster_slots_assigned:16384'; then
        echo "the cluster is there already"
        exit 0
    fi
done

for i in 0 1 2; do
    id="$(node "$i" cluster myid)"
    until node "$((i + 3))" cluster replicate "$id"; do sleep 1; done
done
# The slots come last, because they say that all of this has been done. "Already busy" is an earlier try's.
node 0 cluster addslotsrange 0 5460 || true
node 1 cluster addslotsrange 5461 10922 || true
node 2 cluster addslotsrange 10923 16383 || true
for i in 0 1 2 3 4 5; do
    echo "waiting for node $i to call the cluster whole"
    until node "$i" cluster info | grep '^cluster_state:ok' && node "$i" cluster info | grep '^cluster_slots_assigned:16384'; do
        sleep 1
    done
done
