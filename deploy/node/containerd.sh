# Part of install.sh: what containerd's configuration says about nacre. What is added can be told from what was there,
# so that taking it away gives the old bytes back.
#
# Version 3 (containerd 2): a drop-in file, and its directory in the main file's `imports`. Version 2: a block at the
# end of the main file, since containerd 1 replaces all that the main file says about the CRI by what an import says.

new_file="# made by nacre"
own_line="# by nacre"
own_element="# the last one by nacre"
begin="# nacre begin"
begin_unended="# nacre begin, after a line without an end"
end="# nacre end"
import="\"$drop_in_dir/*.toml\""

configure() {
    [ ! -L "$host$config" ] || die "$config is a symbolic link: set CONTAINERD_CONFIG to the file itself"
    format=$(config_version)
    make_dir "$(dirname "$config")"
    without_nacre > "$work/plain"
    case $format in
        3)
            make_dir "$drop_in_dir"
            with_import > "$work/main"
            runtime nacre.toml > "$work/drop-in"
            put "$work/drop-in" "$drop_in_dir/nacre.toml"
            ;;
        2)
            with_block > "$work/main"
            drop "$drop_in_dir/nacre.toml"
            ;;
    esac
    put "$work/main" "$config"
}

unconfigure() {
    # Of an installation that was interrupted.
    rm -f "$host$config.nacre-new" "$host$drop_in_dir/nacre.toml.nacre-new"
    drop "$drop_in_dir/nacre.toml"
    [ -e "$host$config" ] || return 0
    without_nacre > "$work/main"
    if [ "$(head -n 1 "$work/main")" = "$new_file" ] && [ "$(wc -l < "$work/main")" -eq 2 ]; then
        drop "$config"
    else
        put "$work/main" "$config"
    fi
}

# The keys before the first table.
top() { sed '/^[[:space:]]*\[/,$d' "$@"; }

config_version() {
    found=${CONTAINERD_CONFIG_VERSION:-auto}
    if [ "$found" = auto ]; then
        found=3
        if [ -e "$host$config" ]; then
            found=$(top "$host$config" | sed -n 's/^[[:space:]]*version[[:space:]]*=[[:space:]]*\([0-9]*\).*/\1/p')
        fi
    fi
    case $found in
        2 | 3) echo "$found" ;;
        *) die "$config has version '$found'; only 2 and 3 are known" ;;
    esac
}

# The main file as it was, or as a new one begins.
without_nacre() {
    if [ ! -e "$host$config" ]; then
        printf '%s\nversion = %s\n' "$new_file" "$format"
        return
    fi
    if grep -qx "$begin_unended" "$host$config" && [ "$(tail -n 1 "$host$config")" = "$end" ]; then
        # The shell takes the last line's end away. By a variable, since a failure within printf's arguments is not seen.
        lines=$(without_lines)
        printf '%s' "$lines"
    else
        without_lines
    fi
}

# An import that others have come to need stays.
without_lines() {
    pattern=$(printf '%s' "$import" | sed 's/[]*.[]/\\&/g')
    if others_import; then
        sed -e "/^$begin/,/^$end\$/d" "$host$config"
    else
        sed -e "/^$begin/,/^$end\$/d" -e "/ $own_line\$/d" \
            -e "/ $own_element\$/{ s|, $pattern||; s|$pattern||; s| $own_element\$||; }" "$host$config"
    fi
}

others_import() {
    for file in "$host$drop_in_dir"/*.toml; do
        case $file in */nacre.toml) ;; *) [ ! -e "$file" ] || return 0 ;; esac
    done
    return 1
}

with_import() {
    # A comment is not taken apart: what looks like an array's end may be one's text.
    line=$(top "$work/plain" | grep '^[[:space:]]*imports[[:space:]]*=' || true)
    case $line in
        *"$drop_in_dir/*.toml"*) cat "$work/plain" ;;
        '')
            # Keys of the file itself must stand before its first table; a comment above may stay the first line.
            if [ "$(head -n 1 "$work/plain")" = "$new_file" ]; then
                cat "$work/plain"
                echo "imports = [$import] $own_line"
            else
                echo "imports = [$import] $own_line"
                cat "$work/plain"
            fi
            ;;
        *'#'*) die "cannot add $import to the imports of $config: add it by hand" ;;
        *)
            sed -e '1,/^[[:space:]]*\[/{' -e '/^[[:space:]]*imports[[:space:]]*=/{' \
                -e "s|\[\([[:space:]]*\)\]\$|[\1$import] $own_element|; t" \
                -e "s|\([^[:space:],]\)\([[:space:]]*\)\]\$|\1, $import\2] $own_element|" \
                -e '}' -e '}' "$work/plain" > "$work/imports"
            grep -q " $own_element\$" "$work/imports" ||
                die "cannot add $import to the imports of $config: add it by hand"
            cat "$work/imports"
            ;;
    esac
}

with_block() {
    if grep -q 'runtimes\.["'\'']\{0,1\}nacre["'\'']\{0,1\}\]' "$work/plain"; then
        die "$config has a runtime nacre that this script did not put there"
    fi
    cat "$work/plain"
    # A last line without an end gets one, and the mark to lose it again.
    if [ -z "$(tail -c 1 "$work/plain")" ]; then echo "$begin"; else printf '\n%s\n' "$begin_unended"; fi
    runtime nacre-v2.toml
    echo "$end"
}

# Our table, and where the shim is: not on the PATH of a containerd that knows nothing of it.
runtime() {
    sed '/^#/d; /^$/d' "$tree/containerd/$1"
    echo "runtime_path = \"$prefix/bin/containerd-shim-nacre-v2\""
}

# The node's file gets these bytes in one step, with the mode and owner that it had, unless it has them already.
put() {
    cmp -s "$1" "$host$2" && return
    : > "$host$prefix/restart-containerd"
    if [ -e "$host$2" ]; then cp -p "$host$2" "$host$2.nacre-new"; fi
    cat "$1" > "$host$2.nacre-new"
    mv -f "$host$2.nacre-new" "$host$2"
    say "changed $2"
}

drop() {
    [ -e "$host$1" ] || return 0
    : > "$host$prefix/restart-containerd"
    rm -f "$host$1"
    say "removed $1"
}
