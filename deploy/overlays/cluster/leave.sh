#!/bin/sh
# Before this pod's Valkey is stopped: if it is a master, hand over to a replica, which loses nothing, so that claims
# wait for a moment rather than until the other masters miss it.
set -u
replica="$(valkey-cli role | sed -n '1{/^master$/!q;};3p')"
[ -n "$replica" ] || exit 0
valkey-cli -h "$replica" cluster failover
tries=0
while [ "$(valkey-cli role | head -n 1)" = master ] && [ "$tries" -lt 20 ]; do
    tries=$((tries + 1))
    sleep 1
done
