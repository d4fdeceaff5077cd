"""The stores of several nodes, played from their manifests: nodes die, come back elsewhere, and no count goes back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.rig.waiting import PATIENCE, wait_until
from tests.containers.machines import Machines, Pod
from tests.containers.manifests import DEPLOY, SETS, Manifest, by_kind, containers
from tests.containers.podman import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if not (shutil.which("valkey-cli") or shutil.which("redis-cli")):
        pytest.skip("neither valkey-cli nor redis-cli is installed")
    tried = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "--net", "ip", "link", "add", "bridge", "type", "bridge"],
        capture_output=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"no network namespaces here: {tried.stderr.decode().strip()}")
    with Machines(tmp_path) as made:
        yield made


def stateful_set(overlay: str, name: str) -> Manifest:
    (found,) = [
        each for each in by_kind(SETS[f"deploy/overlays/{overlay}"], "StatefulSet") if each["metadata"]["name"] == name
    ]
    return found


def wait_until_ready(*pods: Pod) -> None:
    for pod in pods:
        wait_until(pod.is_ready, f"{pod.name} to be ready: {pod.log.read_text()[-2000:]}")


def masters(pods: list[Pod]) -> list[Pod]:
    return [pod for pod in pods if pod.address and pod.ask("role")[:1] == ["master"]]


def set_on_replica(pod: Pod, key: str, value: str) -> bool:
    """Set a key, following redirections to the names that nodes announce; whether a replica confirms it."""
    script = f"printf 'set {key} {value}\\nwait 1 10000\\n' | valkey-cli -c -h {pod.host}"
    return pod.machines.run("sh", "-c", script).split()[-2:] == ["OK", "1"]


class Counter:
    """A number that only goes up, each time on the master and at least one replica."""

    def __init__(self) -> None:
        self.value = 0

    def count(self, master: Pod) -> None:
        self.value += 1
        # Refused until the master hears from a replica, which may be new to it.
        wait_until(lambda: set_on_replica(master, "number", str(self.value)), "a replica to confirm")

    def is_on(self, pod: Pod) -> bool:
        return pod.ask("get", "number") == [str(self.value)]


class Sentinels:
    def __init__(self, machines: Machines) -> None:
        scripts = DEPLOY / "overlays" / "sentinel"
        self.pods = machines.play(stateful_set("sentinel", "pythonricing-sentinel"), scripts)
        self.stores = machines.play(stateful_set("sentinel", "pythonricing-store"), scripts)
        wait_until_ready(*self.pods, *self.stores)
        wait_until(lambda: all(map(self.knows_all, self.pods)), "the Sentinels to know all")

    @staticmethod
    def knows_all(sentinel: Pod) -> bool:
        lines = sentinel.ask("sentinel", "master", "counters")
        known = dict(zip(lines[::2], lines[1::2], strict=False))
        return (known.get("num-slaves"), known.get("num-other-sentinels")) == ("2", "2")

    def named(self) -> Pod | None:
        """The store that all Sentinels name as the master."""
        answers = {
            (each.ask("sentinel", "get-master-addr-by-name", "counters") or [""])[0]
            for each in self.pods
            if each.address
        }
        return next((store for store in self.stores if {store.host} == answers), None)

    def another_than(self, lost: Pod) -> Pod:
        """The master that takes over from `lost`."""

        def found() -> Pod | None:
            named = self.named()
            return named if named not in (None, lost) and masters(self.stores) == [named] else None

        taking_over: Pod = wait_until(found, "another master")
        return taking_over


@pytest.fixture
def sentinels(machines: Machines) -> Sentinels:
    return Sentinels(machines)


def wait_until_replicated(stores: list[Pod], master: Pod, counter: Counter) -> None:
    """Until every store is ready, has the count, and follows the one master."""
    wait_until_ready(*stores)
    wait_until(lambda: all(map(counter.is_on, stores)), "the count to be everywhere")
    assert masters(stores) == [master]
    followed = {tuple(store.ask("role")[:2]) for store in stores if store is not master}
    assert followed == {("slave", master.host)}


def test_the_first_store_is_the_first_master(sentinels: Sentinels) -> None:
    counter = Counter()
    assert masters(sentinels.stores) == [sentinels.stores[0]]
    counter.count(sentinels.stores[0])
    wait_until_replicated(sentinels.stores, sentinels.stores[0], counter)


def test_a_lost_master_comes_back_elsewhere_as_a_replica(sentinels: Sentinels) -> None:
    counter = Counter()
    lost = sentinels.stores[0]
    counter.count(lost)
    lost.kill()
    master = sentinels.another_than(lost)
    assert counter.is_on(master)
    counter.count(master)
    lost.start()
    wait_until_replicated(sentinels.stores, master, counter)
    # So do all of them, when they were away together: the last master is the master again.
    for pod in [*sentinels.stores, *sentinels.pods]:
        pod.kill()
    for pod in [*sentinels.stores, *sentinels.pods]:
        pod.start()
    wait_until_replicated(sentinels.stores, master, counter)


def test_a_master_that_is_replaced_hands_over_first(sentinels: Sentinels) -> None:
    counter = Counter()
    leaving = sentinels.stores[0]
    counter.count(leaving)
    leaving.stop()
    master = sentinels.another_than(leaving)
    assert not any("+sdown master" in each.log.read_text() for each in sentinels.pods), "nobody had to miss it"
    leaving.start()
    wait_until_replicated(sentinels.stores, master, counter)


def test_what_is_written_while_the_master_hands_over_is_not_lost(sentinels: Sentinels, tmp_path: Path) -> None:
    leaving = sentinels.stores[0]
    replies = tmp_path / "replies"
    with replies.open("w") as file:
        writing = subprocess.Popen(
            [*leaving.machines.inside(), "sh", "-c", f"yes incr number | valkey-cli -h {leaving.address}"],
            env=leaving.machines.environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    wait_until(lambda: replies.stat().st_size > 100, "writes")
    leaving.stop()
    os.killpg(writing.pid, signal.SIGKILL)
    writing.wait(PATIENCE)
    acknowledged = max(int(line) for line in replies.read_text().split("\n")[:-1] if line.isdecimal())
    master = sentinels.another_than(leaving)
    assert int(master.ask("get", "number")[0]) >= acknowledged > 100


def test_a_master_without_its_volume_does_not_empty_the_replicas(sentinels: Sentinels) -> None:
    counter = Counter()
    lost = sentinels.stores[0]
    counter.count(lost)
    lost.kill()
    lost.forget()
    lost.start()  # at once, before anybody misses it
    master = sentinels.another_than(lost)
    assert "this store has no data, the replicas do" in lost.log.read_text()
    wait_until_replicated(sentinels.stores, master, counter)


def test_a_sentinel_without_its_volume_learns_who_the_master_is(sentinels: Sentinels) -> None:
    counter = Counter()
    counter.count(sentinels.stores[0])
    sentinels.stores[0].stop()
    master = sentinels.another_than(sentinels.stores[0])
    sentinels.pods[0].kill()
    sentinels.pods[0].forget()
    sentinels.pods[0].start()
    sentinels.stores[0].start()
    wait_until_replicated(sentinels.stores, master, counter)
    wait_until(lambda: sentinels.named() is master, "all Sentinels to agree")


def test_the_counters_of_a_single_valkey_are_taken_over(machines: Machines) -> None:
    (single,) = machines.play(stateful_set("valkey", "pythonricing-store"), DEPLOY)
    wait_until_ready(single)
    assert single.ask("set", "number", "1") == ["OK"]
    single.kill()
    sentinels = Sentinels(machines)
    assert masters(sentinels.stores) == [sentinels.stores[0]]
    assert all(store.ask("get", "number") == ["1"] for store in sentinels.stores)


def test_a_store_waits_for_the_word_of_two_sentinels(sentinels: Sentinels) -> None:
    for pod in (*sentinels.stores[:1], *sentinels.pods[1:]):
        pod.kill()
    sentinels.stores[0].start()
    said = wait_until(lambda: "waiting" in (text := sentinels.stores[0].log.read_text()) and text, "it to wait")
    assert "waiting until two Sentinels name the same master" in said
    assert sentinels.stores[0].ask("ping") == []
    sentinels.pods[1].start()
    wait_until_ready(*sentinels.stores)


@pytest.fixture
def nodes(machines: Machines) -> list[Pod]:
    return machines.play(stateful_set("cluster", "pythonricing-store"), DEPLOY / "overlays" / "cluster")


def create(machines: Machines) -> str:
    """Run the Job."""
    (job,) = by_kind(SETS["deploy/overlays/cluster"], "Job")
    (container,) = containers(job)
    (mount,) = container["volumeMounts"]
    folder = str(DEPLOY / "overlays" / "cluster")
    return machines.run(*(word.replace(mount["mountPath"], folder) for word in container["command"]))


def topology(nodes: list[Pod]) -> dict[Pod, str]:
    """Each node's master's id, or its own, as the nodes themselves tell."""
    own = {}
    for node in nodes:
        for line in node.ask("cluster", "nodes"):
            words = line.split()
            if len(words) > 3 and "myself" in words[2]:
                own[node] = words[0] if words[3] == "-" else words[3]
    return own


def is_whole(nodes: list[Pod]) -> bool:
    """Whether every node calls the cluster whole and knows all of its nodes to be well."""
    return all(
        "cluster_state:ok" in (state := " ".join(node.ask("cluster", "info")))
        and "cluster_slots_ok:16384" in state
        and "fail" not in " ".join(line for line in node.ask("cluster", "nodes"))
        and node.is_ready()
        for node in nodes
    )


def count_in(nodes: list[Pod], value: str) -> None:
    """Set a key of each shard, on its replica too."""
    for key in ("a", "b", "c"):
        wait_until(partial(set_on_replica, nodes[0], key, value), "the replica to confirm")


def number_in(nodes: list[Pod]) -> list[str]:
    at = next(node for node in nodes if node.address)
    return [
        at.machines.run("timeout", "5", "valkey-cli", "-c", "-e", "-h", at.host, "get", key, check=False)
        for key in ("a", "b", "c")
    ]


def test_a_cluster_is_made_once_and_clients_are_told_names(machines: Machines, nodes: list[Pod]) -> None:
    # An earlier try was interrupted.
    wait_until(lambda: nodes[1].ask("cluster", "addslotsrange", "5461", "10922") == ["OK"], "the node to start")
    create(machines)
    wait_until(lambda: is_whole(nodes), "the cluster")
    made = topology(nodes)
    assert [made[node] for node in nodes[3:]] == [made[node] for node in nodes[:3]]
    assert len(set(made.values())) == 3
    redirected = [nodes[0].ask("get", key)[0] for key in ("a", "b", "c")]
    assert {word.split()[2].rpartition(":")[0] for word in redirected if "MOVED" in word} == {
        node.host for node in nodes[1:3]
    }
    # A failover changes who is what; the Job leaves it so.
    nodes[0].stop()
    wait_until(lambda: nodes[3] in masters(nodes), "the replica to take over")
    nodes[0].start()
    wait_until(lambda: is_whole(nodes), "the cluster")
    changed = topology(nodes)
    assert changed[nodes[0]] == changed[nodes[3]] != made[nodes[0]]
    assert "the cluster is there already" in create(machines)
    assert topology(nodes) == changed


def test_a_cluster_finds_itself_again_when_all_addresses_have_changed(machines: Machines, nodes: list[Pod]) -> None:
    create(machines)
    wait_until(lambda: is_whole(nodes), "the cluster")
    count_in(nodes, "7")
    for node in nodes:
        node.kill()
    for node in nodes:
        node.start()
    wait_until(lambda: is_whole(nodes), "the cluster")
    assert number_in(nodes) == ["7", "7", "7"]


def test_a_replica_takes_a_lost_masters_place(machines: Machines, nodes: list[Pod]) -> None:
    create(machines)
    wait_until(lambda: is_whole(nodes), "the cluster")
    count_in(nodes, "7")
    lost = nodes[1]
    lost.kill()
    wait_until(lambda: nodes[4] in masters(nodes), "the replica to take over")
    wait_until(lambda: number_in(nodes) == ["7", "7", "7"], "the numbers")
    lost.start()
    wait_until(lambda: is_whole(nodes), "the cluster")
    assert lost not in masters(nodes)


def test_a_node_without_its_volume_becomes_a_replica_by_hand(machines: Machines, nodes: list[Pod]) -> None:
    create(machines)
    wait_until(lambda: is_whole(nodes), "the cluster")
    count_in(nodes, "7")
    lost = nodes[1]
    (old_id,) = lost.ask("cluster", "myid")
    lost.kill()
    lost.forget()
    lost.start()
    wait_until(lambda: nodes[4] in masters(nodes), "the replica to take over")
    (new_id,) = nodes[4].ask("cluster", "myid")
    wait_until(lambda: lost.ask("cluster", "replicate", new_id) == ["OK"], "the node to know its master")
    for node in nodes:
        node.ask("cluster", "forget", old_id)
    wait_until(lambda: is_whole(nodes), "the cluster")
    assert topology(nodes)[lost] == new_id
    assert number_in(nodes) == ["7", "7", "7"]


def test_a_master_of_a_cluster_that_is_replaced_hands_over_first(machines: Machines, nodes: list[Pod]) -> None:
    create(machines)
    wait_until(lambda: is_whole(nodes), "the cluster")
    count_in(nodes, "7")
    nodes[2].run("sh", str(DEPLOY / "overlays/cluster/leave.sh"))
    assert nodes[2].ask("role")[0] == "slave"
    assert number_in(nodes) == ["7", "7", "7"]
    # A replica has nothing to hand over.
    nodes[2].run("sh", str(DEPLOY / "overlays/cluster/leave.sh"))
    assert nodes[5] in masters(nodes)


CLAIMS = """
import asyncio, json, pathlib, sys
from loadtests.rig.clients import hammer
from loadtests.rig.waiting import wait_until
stop = pathlib.Path(sys.argv[1])
def claims():
    while not stop.exists():
        yield 1
history = asyncio.run(hammer(8080, 4, claims(), keys=True, retry=(0, 503), pace=0.1))
print(json.dumps([history.statuses(), history.owned()]))
"""


@pytest.fixture
def claiming(machines: Machines, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Claiming]:
    """The service with the settings of an overlay, and clients that ask again until they are answered."""
    made = Claiming(machines, request.param, tmp_path)
    yield made
    made.end()


class Claiming:
    def __init__(self, machines: Machines, overlay: str, folder: Path) -> None:
        self.machines = machines
        self.overlay = overlay
        self._folder = folder
        self._processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        maps = by_kind(SETS[f"deploy/overlays/{self.overlay}"], "ConfigMap")
        (settings,) = [each["data"] for each in maps if "PYTHONRICING_STORE" in each["data"]]
        settings = settings | {"PYTHONRICING_LIMIT": "1000000", "PYTHONPATH": str(ROOT)}
        self._run([str(Path(sys.executable).with_name("pythonricing")), "serve", "--workers", "2"], "service", settings)
        wait_until(lambda: self._get("/readyz")[0] == 200, "the service to be ready")
        self._run(["-c", CLAIMS, str(self._folder / "stop")], "claims", {"PYTHONPATH": str(ROOT)})

    def count(self) -> int:
        """The count of the store, once it can be asked."""
        return int(wait_until(lambda: self._get("/counters/default"), "the count")[1].get("count", 0))

    def wait_for_more(self) -> None:
        before = self.count()
        wait_until(lambda: self.count() > before + 10, "claims to be admitted")

    def finish(self) -> tuple[dict[str, int], list[int]]:
        """How often each status was answered, and every number that was given."""
        (self._folder / "stop").touch()
        self._processes[1].wait(PATIENCE)
        statuses, owned = json.loads((self._folder / "claims.log").read_text())
        return statuses, owned

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(PATIENCE)

    def _run(self, command: list[str], name: str, settings: dict[str, str]) -> None:
        with (self._folder / f"{name}.log").open("w") as log:
            self._processes.append(
                subprocess.Popen(
                    [*self.machines.inside(), sys.executable, *command],
                    # Without leases, some of which a failover spends: each number has to be somebody's.
                    env=self.machines.environment | {"PYTHONRICING_LEASE": "0"} | settings,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def _get(self, path: str) -> tuple[int, dict[str, Any]]:
        ask = (
            "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8080); c.request('GET', sys.argv[1]);"
            "r = c.getresponse(); print(r.status, r.read().decode())"
        )
        answer = self.machines.run(sys.executable, "-c", ask, path, check=False)
        status, _, body = answer.partition(" ")
        return (int(status), json.loads(body)) if status.isdecimal() else (0, {})


@pytest.mark.parametrize("claiming", ["sentinel"], indirect=True)
def test_no_number_is_given_twice_or_lost_while_masters_come_and_go(sentinels: Sentinels, claiming: Claiming) -> None:
    claiming.start()
    claiming.wait_for_more()
    lost = sentinels.stores[0]
    lost.kill()
    master = sentinels.another_than(lost)
    claiming.wait_for_more()
    lost.start()
    wait_until_ready(*sentinels.stores)
    wait_until(lambda: all(map(sentinels.knows_all, sentinels.pods)), "the Sentinels to know all")
    master.stop()
    sentinels.another_than(master)
    claiming.wait_for_more()
    statuses, owned = claiming.finish()
    assert set(statuses) <= {"200", "503", "0"}
    assert owned == list(range(1, claiming.count() + 1))


@pytest.mark.parametrize("claiming", ["cluster"], indirect=True)
def test_no_number_is_given_twice_or_lost_while_nodes_are_replaced(nodes: list[Pod], claiming: Claiming) -> None:
    create(nodes[0].machines)
    wait_until(lambda: is_whole(nodes), "the cluster")
    claiming.start()
    for node in nodes[:3]:
        claiming.wait_for_more()
        node.stop()
        node.start()
        wait_until(lambda: is_whole(nodes), "the cluster")
    claiming.wait_for_more()
    statuses, owned = claiming.finish()
    assert set(statuses) <= {"200", "503", "0"}
    assert owned == list(range(1, claiming.count() + 1))
