"""What podman and Kubernetes are given, with kustomizations resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from tests.containers.podman import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())

Manifest = dict[str, Any]


def read(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text()))


def merge(base: Any, patch: Any) -> Any:
    """A strategic merge for what the patches here do: maps by key, lists of named things by name."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: merge(base.get(key), value) for key, value in patch.items()}
    if isinstance(base, list) and all(isinstance(item, dict) and "name" in item for item in [*base, *patch]):
        named = {item["name"]: item for item in base}
        for item in patch:
            named[item["name"]] = merge(named.get(item["name"]), item)
        return list(named.values())
    return patch


def resolve(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` prints, as far as the files here go: resources, patches and images."""
    (kustomization,) = read(folder / "kustomization.yaml")
    known = {"apiVersion", "kind", "namespace", "labels", "resources", "patches", "images"}
    known |= {"configMapGenerator", "generatorOptions"}
    assert set(kustomization) <= known, "the tests don't know how to resolve this"
    manifests: list[Manifest] = []
    for name in kustomization["resources"]:
        path = folder / name
        manifests += resolve(path) if path.is_dir() else read(path)
    for entry in kustomization.get("configMapGenerator", []):
        assert kustomization["generatorOptions"] == {"disableNameSuffixHash": True}
        data = {name: (folder / name).read_text() for name in entry["files"]}
        manifests.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": entry["name"]}, "data": data})
    for entry in kustomization.get("patches", []):
        for patch in read(folder / entry["path"]):
            targets = [index for index, each in enumerate(manifests) if identity(each) == identity(patch)]
            assert len(targets) == 1, f"{identity(patch)} is patched, but is there {len(targets)} times"
            manifests[targets[0]] = merge(manifests[targets[0]], patch)
    images = {entry["name"]: entry for entry in kustomization.get("images", [])}
    for container in (each for manifest in manifests for each in containers(manifest)):
        name, _, tag = container["image"].partition(":")
        if name in images:
            container["image"] = f"{images[name].get('newName', name)}:{images[name].get('newTag', tag)}"
    return manifests


def identity(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


def pod_spec(manifest: Manifest) -> Manifest | None:
    spec: Manifest = manifest.get("spec", {})
    if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
        spec = spec["template"]["spec"]
    return spec if manifest["kind"] in ("Deployment", "StatefulSet", "Job", "Pod") else None


def containers(manifest: Manifest) -> list[Manifest]:
    found: list[Manifest] = (pod_spec(manifest) or {}).get("containers", [])
    return found


def by_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] == kind]


def every_set() -> dict[str, list[Manifest]]:
    return {"playfile.yaml": read(ROOT / "playfile.yaml")} | {
        f"deploy/overlays/{name}": resolve(DEPLOY / "overlays" / name) for name in OVERLAYS
    }


SETS = every_set()
