#!/bin/bash
# usage: tools/conformance/images.sh OUT: makes OUT/images an OCI layout with the images that critest pulls, from OUT/tree
# (packages.sh) and OUT/bin (pause, nonewprivs). It runs where umoci is: in the lab. A tag there is the image's name with
# "/" and ":" as "_"; OUT/images.list has lines "TAG NAME". Files that an image has at another place than Debian's
# packages are the ones that critest asks for.
set -euo pipefail
out=$(cd "$1" && pwd)
stamp=$(cat "$0" "$out/tree.stamp" "$out"/bin/{pause,nonewprivs} | sha256sum)
[ -e "$out/images.stamp" ] && [ "$(<"$out/images.stamp")" = "$stamp" ] && exit 0
rm -rf "$out/images" "$out"/images.{list,stamp}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
layout=$work/layout
tree=$out/tree
e2e=registry.k8s.io/e2e-test-images
staging=gcr.io/k8s-staging-cri-tools
epoch=1970-01-01T00:00:00Z
umoci init --layout "$layout"

# image NAME DIRECTORY [CONFIGURATION...]: an image of one layer.
image() {
    local name=$1 tag=${1//[:\/]/_} from=$2
    shift 2
    umoci new --image "$layout:$tag"
    umoci insert --history.created "$epoch" --image "$layout:$tag" "$from" / > /dev/null
    umoci config --created "$epoch" --history.created "$epoch" --image "$layout:$tag" \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
    echo "$tag $name" >> "$work/list"
}

# program ROOT FILE...: files of the tree with the libraries that they need.
program() {
    local root=$1 libraries=usr/lib/x86_64-linux-gnu
    local loader=$libraries/ld-linux-x86-64.so.2
    shift
    (
        cd "$tree"
        for file; do
            echo "$file"
            "$loader" --library-path "$tree/$libraries" --list "$file" | awk '$3 ~ "^/" { print $3 }'
        done | sed "s,^$tree/,," | sort -u | while read -r path; do
            mkdir -p "$root/$(dirname "$path")"
            cp "$path" "$root/$path"
        done
        cp "$loader" "$root/usr/lib64/"
    )
}

# base ROOT: what every image but pause has: busybox under all its names, and users. A case masks /bin/ls, and wants the
# shell to fail at it and all else to work: so the names are hard links, and the busybox is the package of that name. The
# shell of busybox-static runs its own `ls` whatever is at /bin/ls.
base() {
    mkdir -p "$1"/{dev,etc,home,proc,root,sys,run,var/log,usr/{bin,sbin,lib,lib64}}
    mkdir -m 1777 "$1/tmp"
    for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$1/$dir"; done
    ln -s ../run "$1/var/run"
    # Debian's busybox has neither of the others.
    program "$1" bin/busybox usr/bin/pgrep usr/bin/ipcs
    chroot "$1" /bin/busybox --list | while read -r name; do ln "$1/bin/busybox" "$1/bin/$name"; done
    printf '%s\n' root:x:0:0:root:/root:/bin/sh games:x:5:60:games:/usr/games:/bin/false \
        www-data:x:33:33:www-data:/var/www:/bin/false nobody:x:65534:65534:nobody:/home:/bin/false > "$1/etc/passwd"
    printf '%s\n' root:x:0: games:x:60: www-data:x:33: nogroup:x:65534: > "$1/etc/group"
}

# nginx_root ROOT PORT
nginx_root() {
    cp -a "$work/busybox" "$1"
    program "$1" usr/sbin/nginx
    mkdir -p "$1"/usr/share/nginx/html "$1"/var/{log,lib}/nginx
    cp "$tree/usr/share/nginx/html/index.html" "$1/usr/share/nginx/html/"
    cat > "$1/etc/nginx.conf" << C
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr;
events { worker_connections 128; }
http {
    access_log /dev/stdout;
    server { listen $2; location / { root /usr/share/nginx/html; index index.html; } }
}
C
}

base "$work/busybox"
image "$e2e/busybox:1.29-2" "$work/busybox" --config.cmd sh
# The label makes an image of its own, which can be removed without the others.
for name in test-image-latest:latest test-image-tag:{test,all} test-image-digest:latest test-image-{1,2,3}:latest; do
    image "$staging/$name" "$work/busybox" --config.cmd sh --config.label "name=$name"
done
# One image with three names.
for tag in 1 2 3; do
    image "$staging/test-image-tags:$tag" "$work/busybox" --config.cmd sh --config.label name=test-image-tags
done
image "$staging/test-image-user-uid:latest" "$work/busybox" --config.cmd sh --config.user 1002
image "$staging/test-image-user-username:latest" "$work/busybox" --config.cmd sh --config.user www-data
image "$staging/test-image-user-uid-group:latest" "$work/busybox" --config.cmd sh --config.user 1003:users
image "$staging/test-image-user-username-group:latest" "$work/busybox" --config.cmd sh --config.user www-data:100

cp -a "$work/busybox" "$work/groups"
echo default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh >> "$work/groups/etc/passwd"
printf '%s\n' default-user:x:1000: group-defined-in-image:x:50000:default-user >> "$work/groups/etc/group"
image "$staging/test-image-predefined-group:latest" "$work/groups" --config.cmd sh --config.user 1000

cp -a "$work/busybox" "$work/nonewprivs"
cp "$out/bin/nonewprivs" "$work/nonewprivs/nnp"
chmod 4755 "$work/nonewprivs/nnp"
image "$e2e/nonewprivs:1.3" "$work/nonewprivs" --config.entrypoint /nnp --config.user 1000

nginx_root "$work/nginx" 80
image "$e2e/nginx:1.14-2" "$work/nginx" --config.cmd nginx --config.cmd -c --config.cmd /etc/nginx.conf \
    --config.cmd -g --config.cmd 'daemon off;'
nginx_root "$work/hostnet" 12003
image "$staging/hostnet-nginx-amd64:latest" "$work/hostnet" --config.cmd nginx --config.cmd -c \
    --config.cmd /etc/nginx.conf --config.cmd -g --config.cmd 'daemon off;'

cp -a "$work/busybox" "$work/httpd"
modules=usr/lib/apache2/modules
# The C library opens libgcc_s by itself where a thread ends.
program "$work/httpd" usr/sbin/apache2 $modules/mod_{mpm_event,authz_core,dir}.so lib/x86_64-linux-gnu/libgcc_s.so.1
ln -sf ../sbin/apache2 "$work/httpd/usr/bin/httpd"
mkdir -p "$work/httpd/var/www"
echo '<html><body><h1>It works!</h1></body></html>' > "$work/httpd/var/www/index.html"
cat > "$work/httpd/etc/httpd.conf" << 'C'
ServerName localhost
ServerRoot /usr/lib/apache2
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule dir_module modules/mod_dir.so
PidFile /run/httpd.pid
Listen 80
User www-data
Group www-data
ErrorLog /proc/self/fd/2
DocumentRoot /var/www
DirectoryIndex index.html
C
image "$e2e/httpd:2.4.39-4" "$work/httpd" --config.cmd httpd --config.cmd -f --config.cmd /etc/httpd.conf \
    --config.cmd -DFOREGROUND

mkdir "$work/pause"
cp "$out/bin/pause" "$work/pause/pause"
image registry.k8s.io/pause:3.10 "$work/pause" --config.entrypoint /pause --config.user 65535:65535

umoci gc --layout "$layout" > /dev/null
cp -r "$layout" "$out/images"
cp "$work/list" "$out/images.list"
echo "$stamp" > "$out/images.stamp"
