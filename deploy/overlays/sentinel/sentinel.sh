#!/bin/sh
# Start this pod's Sentinel. Only the first start writes its file: from then on the Sentinel keeps in it who the master
# is, which of them decided that last, and who the others are. `sentinel set` on each Sentinel changes an option later.
set -eu

if [ ! -s sentinel.conf ]; then
    # A master that is silent for 5 s is failed over once two of the three Sentinels miss it.
    cat > sentinel.conf.new <<EOF
port 26379
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $POD_NAME.pythonricing-sentinel
sentinel monitor counters pythonricing-store-0.pythonricing-store 6379 2
sentinel down-after-milliseconds counters 5000
sentinel failover-timeout counters 10000
EOF
    mv sentinel.conf.new sentinel.conf
fi
exec valkey-server sentinel.conf --sentinel
