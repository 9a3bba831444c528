"""usage: validate.py DEPLOY RENDERED KUBERNETES...: the plain manifests of DEPLOY and the rendered ones
(RENDERED/NAME-KUBERNETES.yaml) against the strict schemas of each version: an unknown field is an error. Then the
chart's defaults against the plain manifests: the same objects, but for the namespace, which helm is told."""

import pathlib
import sys

import kubernetes_validate
import yaml


def objects(*files):
    found = {}
    for file in files:
        for thing in yaml.safe_load_all(file.read_text()):
            if thing is None:
                continue
            key = (thing["kind"], thing["metadata"]["name"])
            assert key not in found, f"{file}: {key} is there twice"
            found[key] = thing
    return found


def differences(plain, chart, path=""):
    if isinstance(plain, dict) and isinstance(chart, dict):
        for key in sorted(plain.keys() | chart.keys()):
            yield from differences(plain.get(key), chart.get(key), f"{path}.{key}")
    elif plain != chart:
        yield f"{path}: manifests {plain!r}, chart {chart!r}"


def main():
    deploy, rendered, versions = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
    plain = objects(deploy / "runtimeclass.yaml", deploy / "daemonset.yaml")
    problems, checked = [], 0
    for version in versions:
        sets = {"manifests": plain}
        for name in ("default", "values", "uninstall"):
            sets[name] = objects(rendered / f"{name}-{version}.yaml")
        for name, things in sets.items():
            for key, thing in things.items():
                checked += 1
                try:
                    kubernetes_validate.validate(thing, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    where = ".".join(str(part) for part in error.path)
                    problems.append(f"{name}, {key}, Kubernetes {version}: {where}: {error.message}")
        if ("RuntimeClass", "nacre") in sets["uninstall"]:
            problems.append("the chart keeps its RuntimeClass while it uninstalls")
    plain = {key: thing for key, thing in plain.items() if key[0] != "Namespace"}
    chart = objects(rendered / f"default-{versions[-1]}.yaml")
    for key in sorted(plain.keys() | chart.keys()):
        problems += differences(plain.get(key), chart.get(key), "/".join(key))
    print(f"    {checked} objects against their schemas, {len(plain)} of the manifests against the chart")
    if problems:
        sys.exit("\n".join(problems))


main()
