#!/bin/sh
# Start this pod's Valkey as a node of the cluster; nodes.conf on its volume says which node. Arguments: those of
# valkey-server.
set -eu

# A pod comes back with another address. It tells the nodes whose addresses it remembers; but when several come back
# together, nobody's may be right any more, so it meets all of them by name, which changes nothing where it is known.
meet() {
    until address="$(timeout 3 valkey-cli -e -h "$1" config get cluster-announce-ip | sed -n 2p)" && [ -n "$address" ] \
        && timeout 3 valkey-cli -e cluster meet "$address" 6379; do
        sleep 1
    done >/dev/null 2>&1
}
for i in 0 1 2 3 4 5; do
    [ "$POD_NAME" = "pythonricing-store-$i" ] || meet "pythonricing-store-$i.pythonricing-store" &
done

# Clients are told names, which stay. Counters whose master and replica are both away don't stop the others.
exec valkey-server "$@" --cluster-enabled yes --cluster-node-timeout 5000 --cluster-require-full-coverage no \
    --cluster-announce-ip "$POD_IP" --cluster-announce-hostname "$POD_NAME.pythonricing-store" \
    --cluster-preferred-endpoint-type hostname
