# To be sourced. serve_registry DIRECTORY: a registry on 127.0.0.1:5000 with its files there, which lives as long as the machine.
serve_registry() {
    mkdir -p "$1/registry"
    cat > "$1/registry.yml" << C
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $1/registry}}
http: {addr: "127.0.0.1:5000"}
C
    docker-registry serve "$1/registry.yml" > "$1/registry.log" 2>&1 &
    for _ in $(seq 300); do { exec 3<> /dev/tcp/127.0.0.1/5000; } 2> /dev/null && break; sleep 0.1; done
    exec 3>&-
}
