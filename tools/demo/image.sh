#!/bin/bash
# usage: tools/demo/image.sh OUT: makes OUT/image an OCI layout with a small image, tag "python", of four layers:
# the directories, the libraries, busybox, python3. All of it comes out of the Debian packages that are installed
# on this machine; times are fixed, so the same packages give the same digests. OUT/image.stamp tells what the
# image was made of: a second call with the same packages does nothing.
set -euo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
stamp=$(cat "$0" <(dpkg-query -W busybox-static python3-minimal libc6) | sha256sum)
[ -e "$out/image.stamp" ] && [ "$(<"$out/image.stamp")" = "$stamp" ] && exit 0
rm -rf "$out/image" "$out/image.stamp"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
layout=$work/layout

# The packages that python3-minimal needs, itself included: one `dpkg-query`, then a walk.
closure() {
    dpkg-query -W -f '${Package}|${Depends},${Pre-Depends}\n' | python3 -S -c '
import re, sys
needs = {}
for line in sys.stdin:
    name, _, depends = line.strip().partition("|")
    first = (re.split(r"[ (:|]", d.strip())[0] for d in depends.split(","))
    needs[name] = [d for d in first if d]
todo, seen = sys.argv[1:], []
while todo:
    name = todo.pop(0)
    if name in needs and name not in seen:
        seen.append(name)
        todo += needs[name]
print(*sorted(seen))' "$@"
}

# layer NAME PACKAGE...: the packages' files under $work/NAME, each at the place it really has.
layer() {
    local to=$work/$1
    shift
    mkdir -p "$to"
    dpkg-query -L "$@" | python3 -S -c '
import os, sys
real = {}
names = set()
for line in sys.stdin:
    path = line.rstrip("\n")
    if path.startswith(("/usr/share/doc/", "/usr/share/man/", "/usr/share/lintian/", "/usr/share/locale/")):
        continue
    if os.path.islink(path) or os.path.isfile(path):
        directory, name = os.path.split(path)
        if directory not in real: real[directory] = os.path.realpath(directory)
        names.add(os.path.join(real[directory], name)[1:])
print(*sorted(names), sep="\n")' | tar -C / -cf - --no-recursion -T - | tar -C "$to" -xf -
}

insert() {
    find "$work/$1" -exec touch -h -d @0 {} +
    umoci insert --history.created 1970-01-01T00:00:00Z --image "$layout:python" "$work/$1" / > /dev/null
}

umoci init --layout "$layout"
umoci new --image "$layout:python"

mkdir -p "$work"/base/{etc,usr/{bin,sbin,lib,lib64},dev,proc,sys,run,var,root}
mkdir -m 1777 "$work/base/tmp"
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$work/base/$dir"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' > "$work/base/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' > "$work/base/etc/group"
cp -L /etc/os-release "$work/base/etc/os-release"
insert base

read -r -a all <<< "$(closure python3-minimal)"
libraries=() python=()
for package in "${all[@]}"; do
    case $package in *python*) python+=("$package") ;; *) libraries+=("$package") ;; esac
done
layer libraries "${libraries[@]}"
insert libraries

layer busybox busybox-static
# It complains of its own name, which is taken.
/usr/bin/busybox --install -s "$work/busybox/usr/bin" 2> /dev/null || true
insert busybox

layer python "${python[@]}"
insert python

umoci config --image "$layout:python" --created 1970-01-01T00:00:00Z --history.created 1970-01-01T00:00:00Z \
    --config.env PATH=/usr/local/bin:/usr/bin:/bin --config.cmd /bin/sh --config.workingdir /root
umoci gc --layout "$layout" > /dev/null
cp -r "$layout" "$out/image"
echo "$stamp" > "$out/image.stamp"
