#!/bin/bash
# usage: tools/conformance/critest.sh OUT HANDLER LIMIT_S FILES [CRITEST_OPTION...]: runs the cases of these files of critest
# against a containerd with the runtime handlers "nacre" and "runc", in a machine of its own. OUT has bin/critest, containerd
# with its programs in bin/containerd, and the images of images.sh; the results are OUT/results/HANDLER-FILE-TIME.json
# (Ginkgo's report) and .log, HANDLER.versions and HANDLER.containerd.log.
# The images' names are those of public registries: containerd asks the registry on loopback in their stead.
set -euo pipefail
out=$1 handler=$2 limit=$3 files=$4
shift 4
# The machine has another containerd, and a shim for runc.
PATH=$out/bin/containerd:$PATH
mkdir -p "$out/results"
result=$out/results/$handler
# A run of chosen cases leaves the results of the others, where these are of the same versions.
versions=$(uname -r; containerd --version; runc --version | head -1)
[ -e "$result.versions" ] && [ "$(<"$result.versions")" = "$versions" ] || rm -f "$result"-*.{json,log}
echo "$versions" > "$result.versions"
[ $# -gt 0 ] || for file in $files; do rm -f "$result-$file"-*.{json,log}; done
work=/var/lib/conformance
mkdir -p "$work/cni" "$work/certs"
# On a machine that goes on, the registry and containerd end with this.
trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT

. "$(dirname "$0")/registry.sh"
serve_registry "$work"
while read -r tag name; do
    skopeo copy -q --dest-tls-verify=false "oci:$out/images:$tag" "docker://127.0.0.1:5000/${name#*/}"
    mkdir -p "$work/certs/${name%%/*}"
    printf 'server = "http://127.0.0.1:5000"\n' > "$work/certs/${name%%/*}/hosts.toml"
done < "$out/images.list"

cat > "$work/cni/10-conformance.conflist" << 'C'
{"cniVersion": "1.0.0", "name": "conformance", "plugins": [
  {"type": "bridge", "bridge": "conf0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.78.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
C
cat > "$work/config.toml" << C
version = 4
root = "$work/root"
state = "/run/conformance"
[plugins.'io.containerd.server.v1.grpc']
address = "/run/conformance.sock"
[plugins.'io.containerd.server.v1.ttrpc']
address = "/run/conformance.sock.ttrpc"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "registry.k8s.io/pause:3.10"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "$work/certs"
[plugins.'io.containerd.cri.v1.runtime']
enable_unprivileged_ports = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "$work/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nacre]
runtime_type = "io.containerd.nacre.v2"
C
# The shims inherit it: a first start on an emulated machine under load is slow.
NACRE_TIMEOUT_MS=150000 containerd -c "$work/config.toml" > "$result.containerd.log" 2>&1 &
for _ in $(seq 600); do ctr -a /run/conformance.sock version > /dev/null 2>&1 && break; sleep 0.2; done

# One call for each file of the suite, so that what has run is known wherever a machine ends. At the limit, Ginkgo ends the
# case it is at and still writes its report.
end=$((SECONDS + limit))
for file in $files; do
    [ $((end - SECONDS)) -gt 0 ] || break
    echo "== $handler: $file"
    name=$result-$file-$(date +%s)
    "$out/bin/critest" --runtime-endpoint=unix:///run/conformance.sock --runtime-handler="$handler" --ginkgo.v \
        --ginkgo.no-color --ginkgo.focus-file="/$file\\.go" --ginkgo.timeout="$((end - SECONDS))s" \
        --ginkgo.json-report="$name.json" "$@" > "$name.log" 2>&1 || true
    [ -s "$name.json" ] || { tail -50 "$name.log" "$result.containerd.log" >&2; exit 1; }
    grep -E '^(FAIL|PASS|SUCCESS)!? --' "$name.log" || true
done
