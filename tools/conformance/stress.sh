#!/bin/bash
# usage: tools/conformance/stress.sh OUT XTASK WORD...: runs `XTASK stress-inside OUT WORD...` beside a registry that has the
# image that the containers are made of, in a machine of its own.
set -euo pipefail
out=$1 xtask=$2
shift 2
. "$(dirname "$0")/registry.sh"
mkdir -p /var/lib/conformance
serve_registry /var/lib/conformance
tag=$(awk '$2 ~ "/busybox:" { print $1 }' "$out/images.list")
skopeo copy -q --dest-tls-verify=false "oci:$out/images:$tag" docker://127.0.0.1:5000/stress
"$xtask" stress-inside "$out" "$@"
