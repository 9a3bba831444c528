#!/bin/bash
# usage: tools/demo/demo.sh OUT: the main job, as a person would do it, on a machine where KVM works:
# an image goes to a registry, comes back with `nacre pull`, and runs in a micro-VM of its own.
# OUT gets host_kernel, exit_status, facts (KEY VALUE lines from inside) and phases.json.
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
export NACRE_ROOT=$work/nacre
registry=
cleanup() {
    [ -n "$registry" ] && { kill "$registry" 2> /dev/null; wait "$registry" 2> /dev/null || true; }
    rm -rf "$work"
}
trap cleanup EXIT
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '\033[36m$ %s\033[0m\n' "$*"; "$@"; }

mkdir -p "$out"
rm -f "$out"/{host_kernel,exit_status,facts,phases.json}
uname -r > "$out/host_kernel"

say "A small image of four layers, out of Debian packages"
"$here/image.sh" "$out"

say "A registry on loopback"
for _ in 1 2 3 4 5; do
    port=$((20000 + RANDOM % 20000))
    printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "127.0.0.1:%s"}\n' \
        "$work/registry" "$port" > "$work/registry.yml"
    docker-registry serve "$work/registry.yml" > "$work/registry.log" 2>&1 &
    registry=$!
    for _ in $(seq 200); do
        kill -0 "$registry" 2> /dev/null || { registry=; break; }
        { exec 3<> "/dev/tcp/127.0.0.1/$port"; } 2> /dev/null && { exec 3>&-; break; }
        sleep 0.05
    done
    [ -n "$registry" ] && break
done
[ -n "$registry" ] || { cat "$work/registry.log" >&2; echo "demo: the registry does not start" >&2; exit 1; }
image=127.0.0.1:$port/demo/python
show skopeo copy -q --dest-tls-verify=false "oci:$out/image:python" "docker://$image"

say "Pull it"
show nacre pull "$image"

say "Run it: every container in its own micro-VM, behind a kernel of its own"
read -r -d '' program <<'P' || true
import os, sys
def read(name):
    try: return open(name).read().strip()
    except OSError as error: return str(error)
print("hello from", os.uname().sysname, os.uname().release)
with os.fdopen(os.dup(2), "w") as facts:
    print("guest_kernel", os.uname().release, file=facts)
    print("pid", os.getpid(), file=facts)
    print("cpus", os.cpu_count(), file=facts)
    print("cpu_max", read("/sys/fs/cgroup/cpu.max"), file=facts)
    print("memory_max", read("/sys/fs/cgroup/memory.max"), file=facts)
    print("pids_max", read("/sys/fs/cgroup/pids.max"), file=facts)
sys.exit(42)
P
printf '\033[36m$ nacre run --rm -m 128m --cpus 1 --pids-limit 64 %s python3 -c ...\033[0m\n' "$image"
status=0
nacre run --rm -m 128m --cpus 1 --pids-limit 64 --phases "$out/phases.json" "$image" python3 -c "$program" \
    2> "$out/facts" || status=$?
echo "$status" > "$out/exit_status"
[ "$status" = 42 ] || { cat "$out/facts" >&2; echo "demo: exit status $status instead of 42" >&2; exit 1; }
