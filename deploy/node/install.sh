#!/bin/sh
# usage: install.sh install|uninstall
#
# Puts nacre on a node of Kubernetes, or takes everything that it put there away again. Either may be repeated: what is
# done already is not done twice, and what was interrupted is finished. Runs in the image of ./Dockerfile as a
# privileged container in the host's PID namespace, or by hand, as root, on the node itself (HOST_ROOT=/).
#
#   HOST_ROOT                  where the node's root directory is (/host)
#   CONTAINERD_CONFIG          containerd's configuration on the node (/etc/containerd/config.toml)
#   CONTAINERD_CONFIG_VERSION  auto, 2 or 3 (auto: what the file says; 3 where there is none)
#   CONTAINERD_SERVICE         its systemd unit (containerd)
#   NODE_NAME                  the node to label through the API, with the pod's service account; none where empty
#   SERVICE_ACCOUNT            where its token and certificate are (where the kubelet puts them)
#   CHECK, RESTART             commands instead of `nacre check` and the restart of the unit, for other hosts and tests
#
# Status 75 means "not now": sandboxes run that need the programs. Their end, or a drained node, lets it go on.
set -eu
umask 022

host=${HOST_ROOT:-/host}
host=${host%/}
# The archive's own tree, which the image has at /nacre.
tree=$(cd "$(dirname "$0")/.." && pwd)
prefix=/opt/nacre
config=${CONTAINERD_CONFIG:-/etc/containerd/config.toml}
drop_in_dir=$(dirname "$config")/conf.d
service=${CONTAINERD_SERVICE:-containerd}
label=nacre-runtime
account=${SERVICE_ACCOUNT:-/var/run/secrets/kubernetes.io/serviceaccount}
programs="bin/nacre bin/containerd-shim-nacre-v2 bin/nacre-vmm bin/nacre-fs guest/vmlinux guest/initramfs.cpio"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

. "$tree/node/containerd.sh"

say() { echo "nacre: $*" >&2; }
die() { say "$*"; exit 1; }
later() { say "$*"; exit 75; }

# On the node itself: its own file system, and with it the socket of its systemd.
on_node() { nsenter --target 1 --mount -- "$@"; }

install() {
    install_programs
    check_node || die "this node cannot run VMs: containerd and the node's label are left alone"
    configure
    if ! restart_containerd; then
        say "containerd did not start with nacre: taking its configuration back"
        unconfigure
        restart_containerd || die "it does not start without nacre either"
        die "containerd refused the configuration; see its log"
    fi
    set_label '"ready"'
    say "installed"
}

uninstall() {
    # First the label: the scheduler sends no more pods, and the ones that run are the last.
    set_label null
    [ -d "$host$prefix" ] || { say "not installed"; return 0; }
    wait_for_sandboxes "the programs are to be removed"
    unconfigure
    restart_containerd || die "containerd did not restart"
    # From here on no containerd asks for them; one that did until now may have started a sandbox since the last look.
    wait_for_sandboxes "the programs are to be removed"
    dirs=$(sort -r "$host$prefix/made-directories" || true)
    rm -rf "$host$prefix"
    for dir in $dirs; do
        # What somebody else has put there in the meantime stays.
        rmdir "$host$dir" 2> /dev/null || true
    done
    say "uninstalled"
}

# The directories of what runs; /run/nacre has sockets and lists beside them, which are files.
sandboxes() {
    for dir in "$host"/run/nacre/*/*/; do
        [ ! -d "$dir" ] || printf ' %s' "${dir#"$host"}"
    done
}

wait_for_sandboxes() {
    running=$(sandboxes)
    [ -z "$running" ] || later "$1, and sandboxes are running:$running"
}

# A shim of the old version would call programs of the new one: all are written before the first is renamed.
install_programs() {
    make_dir "$prefix/bin"
    make_dir "$prefix/guest"
    changed=
    replaced=
    for file in $programs; do
        target=$host$prefix/$file
        cmp -s "$tree/$file" "$target" && continue
        changed="$changed $file"
        [ ! -e "$target" ] || replaced=yes
        cp "$tree/$file" "$target.new"
        case $file in bin/*) chmod 755 "$target.new" ;; *) chmod 644 "$target.new" ;; esac
    done
    [ -z "$replaced" ] || wait_for_sandboxes "another version is to be installed"
    for file in $changed; do
        mv -f "$host$prefix/$file.new" "$host$prefix/$file"
        say "put $prefix/$file"
    done
}

# Makes a directory of the node, and remembers which ones had to be made.
make_dir() {
    dir=$1
    missing=
    while [ ! -d "$host$dir" ]; do
        missing="$missing $dir"
        dir=$(dirname "$dir")
    done
    # Noted first: what is made and not noted would stay.
    mkdir -p "$host$prefix"
    for dir in $missing; do
        echo "$dir" >> "$host$prefix/made-directories"
    done
    mkdir -p "$host$1"
}

check_node() {
    if [ -n "${CHECK:-}" ]; then sh -c "$CHECK" >&2; else on_node "$prefix/bin/nacre" check >&2; fi
}

# The mark is made before a change and removed after the restart, so that one that was interrupted is made up for.
restart_containerd() {
    [ -e "$host$prefix/restart-containerd" ] || return 0
    say "restarting containerd"
    if [ -n "${RESTART:-}" ]; then
        sh -c "$RESTART" || return 1
    else
        on_node systemctl restart "$service" || return 1
    fi
    rm -f "$host$prefix/restart-containerd"
}

# A label of this node becomes this JSON value. The token goes by a pipe, since arguments can be seen by everybody.
set_label() {
    [ -n "${NODE_NAME:-}" ] || return 0
    server=$KUBERNETES_SERVICE_HOST
    case $server in *:*) server="[$server]" ;; esac
    printf 'header = "Authorization: Bearer %s"\n' "$(cat "$account/token")" |
        curl --config - --silent --show-error --fail --output /dev/null --max-time 30 --cacert "$account/ca.crt" \
            --request PATCH --header 'Content-Type: application/merge-patch+json' \
            --data "{\"metadata\":{\"labels\":{\"$label\":$1}}}" \
            "https://$server:$KUBERNETES_SERVICE_PORT/api/v1/nodes/$NODE_NAME" ||
        die "cannot set the label $label of node $NODE_NAME"
}

case ${1:-} in
    install) install ;;
    uninstall) uninstall ;;
    *) die "usage: install.sh install|uninstall" ;;
esac
