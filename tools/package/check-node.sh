#!/bin/bash
# usage: tools/package/check-node.sh ARCHIVE OCI CRICTL: what the DaemonSet's container does to a node, with a real
# containerd and a pod, but no cluster: `install`, a pod of the handler, `uninstall`, with both forms of containerd's
# configuration. OCI is a layout with the tag "python", as tools/demo/image.sh makes it; CRICTL is the kubelet's
# stand-in (go install sigs.k8s.io/cri-tools/cmd/crictl@v1.37.0). Changes the machine it runs on, so it is for the lab:
#   cargo xtask lab --fresh -- tools/package/check-node.sh target/package/nacre-VERSION-x86_64.tar.gz target/demo/image CRICTL
set -euo pipefail
archive=$1 oci=$2 crictl=$(realpath "$3")
config=/etc/containerd/config.toml
work=$(mktemp -d)
installer=$work/nacre/node/install.sh
say() { printf '==> %s\n' "$*"; }
fail() { echo "check-node: $*" >&2; tail -20 "$work/log" >&2; exit 1; }
[ "$(cat /proc/sys/kernel/hostname)" = lab ] || { echo "check-node: not the lab" >&2; exit 1; }

# Nothing of the tree's own programs. Shims inherit the limit: emulated machines are slow.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOST_ROOT=/ NACRE_TIMEOUT_MS=150000
export RESTART=$work/restart
cat > "$RESTART" << 'SCRIPT'
#!/bin/bash
# Stands in for systemd: like its unit of containerd, it fails where containerd does not come up.
dir=$(dirname "$0")
if [ -e "$dir/pid" ]; then
    kill "$(cat "$dir/pid")" && while kill -0 "$(cat "$dir/pid")" 2> /dev/null; do sleep 0.1; done
fi
setsid containerd >> "$dir/log" 2>&1 < /dev/null &
echo $! > "$dir/pid"
for _ in $(seq 300); do
    ctr version > /dev/null 2>&1 && exit 0
    kill -0 "$(cat "$dir/pid")" 2> /dev/null || exit 1
    sleep 0.2
done
exit 1
SCRIPT
chmod 755 "$RESTART"
# The same, after a pod that nobody has told the installer about.
cat > "$work/late" << SCRIPT
#!/bin/bash
"$crictl" --timeout 240s -r unix:///run/containerd/containerd.sock runp --runtime nacre "$work/pod.json" > "$work/late-pod" || exit 1
exec "$RESTART"
SCRIPT
chmod 755 "$work/late"
cri() { "$crictl" --timeout 240s -r unix:///run/containerd/containerd.sock -i unix:///run/containerd/containerd.sock "$@"; }
census() { find /etc/containerd /opt -exec ls -ld --time-style=+ {} + -type f -exec sha256sum {} + | sed 's/^\(d[^ ]*\) *[0-9]* /\1 /' | sort; }

# image NAME OPTION...: the layout's image in containerd's store, with these options of `umoci config`.
image() {
    local name=$1
    shift
    rm -rf "$work/layout" "$work/image.tar"
    skopeo copy -q "oci:$oci:python" "oci:$work/layout:image"
    [ $# = 0 ] || umoci config --image "$work/layout:image" "$@"
    skopeo copy -q "oci:$work/layout:image" "oci-archive:$work/image.tar:$name"
    ctr -n k8s.io image import "$work/image.tar" > /dev/null
}

# The pod has the host's network, which is none for a VM: this is not about CNI.
cat > "$work/pod.json" << 'JSON'
{"metadata": {"name": "p", "uid": "u", "namespace": "n", "attempt": 0}, "log_directory": "/tmp",
 "linux": {"security_context": {"namespace_options": {"network": 2}}}}
JSON
echo '{"metadata": {"name": "c"}, "image": {"image": "localhost/test:latest"}, "command": ["sleep", "100000"], "log_path": "c.log", "linux": {}}' \
    > "$work/container.json"

# check CONFIGURATION: one round, from a node without nacre to a node without nacre.
check() {
    mkdir -p /etc/containerd
    printf '%s' "$1" > "$config"
    "$RESTART" || fail "containerd does not start"
    image localhost/test:latest
    image localhost/pause:latest --config.cmd sleep --config.cmd 2000000000
    local before pod container guest status=0
    before=$(census)
    "$installer" install
    "$installer" install
    pod=$(cri runp --runtime nacre "$work/pod.json") || fail "no pod"
    container=$(cri create "$pod" "$work/container.json" "$work/pod.json")
    cri start "$container" > /dev/null || fail "no container"
    guest=$(cri exec -s "$container" uname -r)
    say "the pod's kernel: $guest, the node's: $(uname -r)"
    case $guest in *-guest) ;; *) fail "not a guest's kernel: $guest" ;; esac
    [ "$(readlink "/proc/$(pgrep -x nacre-vmm)/exe")" = /opt/nacre/bin/nacre-vmm ] || fail "another VMM than the installed one"
    "$installer" uninstall || status=$?
    [ "$status" = 75 ] || fail "uninstall below a running pod: status $status"
    cri rmp -f "$pod" > /dev/null
    status=0
    RESTART=$work/late "$installer" uninstall || status=$?
    [ "$status" = 75 ] || fail "a pod started before the restart of uninstall: status $status"
    [ -x /opt/nacre/bin/nacre-fs ] || fail "the programs of a running pod were removed"
    cri rmp -f "$(cat "$work/late-pod")" > /dev/null || fail "a pod cannot be removed without the handler"
    "$installer" uninstall
    [ "$(census)" = "$before" ] || fail "the node is not what it was: $(diff <(echo "$before") <(census))"
    ! cri runp --runtime nacre "$work/pod.json" > /dev/null 2>&1 || fail "containerd still has the handler"
}

mkdir "$work/nacre"
tar -C "$work/nacre" --strip-components=1 -xzf "$archive"
say "configuration of version 2, as Debian has it"
check 'version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:latest"
'
say "configuration of version 3"
check "version = 3
imports = []
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'localhost/pause:latest'
"
say "a configuration that containerd refuses is taken back"
before=$(census)
real=$RESTART
printf '#!/bin/sh\ngrep -q nacre %s && exit 1\nexec %s\n' "$config" "$real" > "$work/refuse"
chmod 755 "$work/refuse"
! RESTART=$work/refuse "$installer" install || fail "a refused configuration is called installed"
RESTART=$real "$installer" uninstall
[ "$(census)" = "$before" ] || fail "the node is not what it was"
kill "$(cat "$work/pid")"
say "the node holds"
