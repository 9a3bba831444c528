#!/bin/bash
# usage: tools/conformance/packages.sh OUT: unpacks the Debian packages that critest's images are made of to OUT/tree.
# It runs where apt reaches a mirror; nothing is installed. OUT/tree.stamp tells what was unpacked.
set -euo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
stamp=$(sha256sum < "$0")
[ -e "$out/tree.stamp" ] && [ "$(<"$out/tree.stamp")" = "$stamp" ] && exit 0
rm -rf "$out/tree" "$out/debs" "$out/tree.stamp"
mkdir -p "$out"/debs/partial "$out"/tree/usr/{bin,sbin,lib,lib64}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$out/tree/$dir"; done
# A machine with nothing installed needs the libraries too.
: > "$out/debs/status"
apt-get -o Dir::State::status="$out/debs/status" -o Dir::Cache::archives="$out/debs" -o Debug::NoLocking=1 \
    -y -qq --no-install-recommends --download-only install apache2-bin busybox nginx procps util-linux > "$out/debs/log" 2>&1 ||
    { cat "$out/debs/log" >&2; exit 1; }
for deb in "$out"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$out/tree"
done
rm -rf "$out/debs"
echo "$stamp" > "$out/tree.stamp"
