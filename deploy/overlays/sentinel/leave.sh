#!/bin/sh
# Before this pod's Valkey is stopped: if it is the master, hand over to a replica, so that claims wait for a moment
# rather than until the Sentinels miss it.
set -u
sentinel() {
    for i in 0 1 2; do
        timeout 3 valkey-cli -e -h "pythonricing-sentinel-$i.pythonricing-sentinel" -p 26379 sentinel "$@" && return
    done 2>/dev/null
}
is_master() { [ "$(sentinel get-master-addr-by-name counters | head -n 1)" = "$POD_NAME.pythonricing-store" ]; }

is_master || exit 0
# From here on nothing is counted that the replicas don't have. It lasts until after the SIGTERM.
valkey-cli client pause 60000 write
sentinel failover counters
tries=0
while is_master && [ "$tries" -lt 20 ]; do
    tries=$((tries + 1))
    sleep 1
done
