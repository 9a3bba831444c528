#!/bin/bash
# usage: tools/package/check-deploy.sh DIR: checks deploy/ with the tools of its users: the chart with `helm lint` and
# `helm template`, everything that comes out with the schemas of Kubernetes. What is missing is fetched from the
# package registries of Go and Python, once, into DIR. Needs no cluster, and so says nothing about one.
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
chart=$root/deploy/helm/nacre
helm_version=v3.22.0
validate_version=1.37.0
# Between the oldest that the chart allows and the newest that the schemas know.
kubernetes=(1.25 1.29 1.33 1.37)

helm=${HELM:-$(command -v helm || echo "$dir/bin/helm")}
if [ ! -x "$helm" ]; then
    echo "==> building helm $helm_version"
    GOBIN=$dir/bin nice -n 19 go install -trimpath "helm.sh/helm/v3/cmd/helm@$helm_version"
fi
python=$dir/python/bin/python3
if ! "$python" -c 'import kubernetes_validate' 2> /dev/null; then
    echo "==> installing kubernetes-validate $validate_version"
    python3 -m venv "$dir/python"
    "$python" -m pip install --quiet --disable-pip-version-check "kubernetes-validate==$validate_version"
fi

# render KUBERNETES OPTION...: the chart's manifests.
render() {
    local version=$1
    shift
    "$helm" template nacre "$chart" --namespace nacre --kube-version "$version" "$@"
}

out=$dir/out
rm -rf "$out"
mkdir -p "$out"
echo "==> helm lint --strict"
"$helm" lint --strict --kube-version "${kubernetes[-1]}" "$chart"

echo "==> helm template"
cat > "$out/all.yaml" << 'VALUES'
image: "images.invalid:5000/nacre-node@sha256:0000000000000000000000000000000000000000000000000000000000000000"
imagePullPolicy: Always
imagePullSecrets: [{name: pull}]
nodeSelector: {kvm: "true"}
tolerations: [{key: vm, operator: Exists, effect: NoSchedule}]
containerd: {config: /etc/containerd/other.toml, version: 2, service: containerd@1}
runtimeClass: {name: vm}
overhead: {memory: 160Mi, cpu: 50m}
VALUES
for version in "${kubernetes[@]}"; do
    render "$version" > "$out/default-$version.yaml"
    render "$version" -f "$out/all.yaml" > "$out/values-$version.yaml"
    render "$version" --set action=uninstall > "$out/uninstall-$version.yaml"
done

echo "==> values that the chart must refuse"
for bad in action=remove image= containerd.version=1 containerd.config=etc/x.toml overhead.memory=lots \
    runtimeClass.name=Not_A_Name unknown=1; do
    if render "${kubernetes[-1]}" --set "$bad" > /dev/null 2>&1; then
        echo "check-deploy: --set $bad is taken" >&2
        exit 1
    fi
    echo "    refused: $bad"
done

echo "==> schemas of Kubernetes ${kubernetes[*]}"
"$python" "$root/tools/package/validate.py" "$root/deploy" "$out" "${kubernetes[@]}"
echo "==> deploy/ holds"
