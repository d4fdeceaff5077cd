#!/usr/bin/env bash
# Make sure that the two images that the Containerfile and playfile.yaml start from are in podman's storage.
#
# Each is pulled if a registry can be reached. Where none can, a stand-in is made under the same name from the same
# distribution's packages, so that the very files that users run are what is tested. Needs root for a stand-in.
set -euo pipefail

# What both real images set; podman takes it as changes to an imported image.
path='ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

have() {
    podman image exists "$1" || podman pull --quiet "$1" >/dev/null 2>&1
}

# stand_in NAME CHANGES... -- OPTIONS OF MMDEBSTRAP...
stand_in() {
    local name="$1" changes=(--change "$path" --change 'LABEL pythonricing.stand-in=true')
    shift
    while [ "$1" != -- ]; do changes+=(--change "$1"); shift; done
    shift
    echo "$name can't be pulled: making a stand-in from packages" >&2
    local folder
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' RETURN
    mmdebstrap --quiet --variant=minbase "$@" trixie "$folder/image.tar"
    podman import --quiet "${changes[@]}" "$folder/image.tar" "$name" >/dev/null
}

debian=docker.io/library/debian:trixie-slim
have "$debian" || stand_in "$debian" 'CMD ["bash"]' --

valkey=docker.io/valkey/valkey:8.1
have "$valkey" || stand_in "$valkey" 'WORKDIR /data' 'VOLUME /data' 'CMD ["valkey-server"]' -- \
    --include=valkey-server --customize-hook='mkdir "$1/data" && chown 999:999 "$1/data"'
