#!/bin/bash
# usage: tools/package/check-deb.sh DEB OCI: installs the package on a Debian that has no nacre, uses what it installed
# and nothing else, purges it, and looks for what is left. OCI is a layout with the tag "python", as
# tools/demo/image.sh makes it. Changes the machine it runs on: for the lab's disk, which is thrown away:
#   cargo xtask lab --fresh -- tools/package/check-deb.sh target/package/nacre_VERSION_amd64.deb target/demo/image
set -euo pipefail
deb=$1 oci=$2
say() { printf '==> %s\n' "$*"; }
fail() { echo "check-deb: $*" >&2; exit 1; }

# Nothing of the tree: neither its programs nor its variables. Emulated machines are slow.
clean() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root NACRE_TIMEOUT_MS=150000 "$@"; }
# Names below the directories that an installation may touch, some of which are not there; dpkg's own state left out.
census() {
    { find /etc /usr /opt /run/nacre /var/lib/nacre -xdev 2> /dev/null || true; } | sort
}

[ "$(cat /proc/sys/kernel/hostname)" = lab ] || [ "${FORCE:-}" = yes ] || fail "not the lab; FORCE=yes for another machine"
for path in /usr/bin/nacre /usr/lib/nacre /etc/nacre /var/lib/nacre; do
    [ ! -e "$path" ] || fail "$path is there already"
done
before=$(census)

say "install"
clean dpkg -i "$deb"
clean dpkg --verify nacre
for program in nacre containerd-shim-nacre-v2 nacre-vmm nacre-fs; do
    [ "$(clean sh -c "command -v $program")" = "/usr/bin/$program" ] || fail "$program is not in /usr/bin"
done
[ "$(stat -c '%U:%G %a' /usr/bin/nacre /usr/lib/nacre/guest/vmlinux | tr '\n' ' ')" = "root:root 755 root:root 644 " ] ||
    fail "owner or mode is wrong"

say "nacre check"
clean nacre check

say "run with the settings as they are installed"
guest=$(clean nacre run --rm "oci:$oci:python" uname -r)
say "the guest's kernel: $guest, the host's: $(uname -r)"
case $guest in *-guest) ;; *) fail "not a guest's kernel: $guest" ;; esac

say "run with every setting of the file set to what it says"
cp /etc/nacre/config.toml /tmp/config.toml
sed -i 's/^#\([a-z_]* = \)/\1/' /etc/nacre/config.toml
[ "$(grep -c '^[a-z]' /etc/nacre/config.toml)" = 10 ] || fail "not every setting is set"
[ "$(clean nacre run --rm "oci:$oci:python" uname -r)" = "$guest" ] || fail "the shim does not take its settings"
echo 'unknown = 1' >> /etc/nacre/config.toml
! clean nacre run --rm "oci:$oci:python" true 2> /tmp/error || fail "an unknown setting is taken"
grep -q /etc/nacre/config.toml /tmp/error || fail "the file is not named: $(cat /tmp/error)"
cp /tmp/config.toml /etc/nacre/config.toml

say "a running sandbox keeps the package"
clean nacre run -d --name keep "oci:$oci:python" sleep 100000 > /dev/null
! clean dpkg --remove nacre 2> /tmp/error || fail "the programs of a running sandbox were removed"
grep -q 'sandboxes are running' /tmp/error || fail "the reason is not told: $(cat /tmp/error)"
clean nacre rm -f keep > /dev/null

say "remove: settings and images stay"
clean dpkg --remove nacre
for path in /etc/nacre/config.toml /var/lib/nacre; do
    [ -e "$path" ] || fail "$path was removed"
done
[ ! -e /usr/bin/nacre ] || fail "the programs were not removed"

say "purge: nothing stays"
clean dpkg --purge nacre
left=$(comm -13 <(echo "$before") <(census))
[ -z "$left" ] || fail "left behind:
$left"
left=$(pgrep -a 'nacre|containerd-shim' || true)
[ -z "$left" ] || fail "processes are left: $left"
say "the package holds"
