"""A cluster in small for the stores of several nodes: pods as network namespaces on a bridge, and names for them.

A pod runs the command of its rendered manifest, with its environment, arguments, probes and scripts, has an address of
its own that changes whenever it is made anew, and keeps its volume. Needs util-linux, iproute2 and namespaces that this
user may make, no root and no image.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Self

from loadtests.rig.redis import redis_programs
from loadtests.rig.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from tests.containers.manifests import Manifest


class Machines:
    """The bridge, the names and the pods. Leaving the context ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pods: dict[str, Pod] = {}
        self.addresses = (f"10.77.{number // 250}.{number % 250 + 2}" for number in count())
        self._hosts = folder / "hosts"
        self._programs = folder / "bin"

    def __enter__(self) -> Self:
        self._programs.mkdir(parents=True)
        (self._programs / "valkey-server").symlink_to(redis_programs()[0])
        client = shutil.which("valkey-cli") or shutil.which("redis-cli")
        assert client is not None
        (self._programs / "valkey-cli").symlink_to(client)
        self.name({})
        setup = (
            f"mount --bind {self._hosts} /etc/hosts && ip link set lo up && ip link add bridge type bridge &&"
            " ip address add 10.77.255.1/16 dev bridge && ip link set bridge up && echo up && exec sleep infinity"
        )
        self.holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "--net", "sh", "-c", setup], stdout=subprocess.PIPE
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"up\n"
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self.pods.values():
            pod.kill()
        self.holder.kill()
        self.holder.wait()
        assert self.holder.stdout is not None
        self.holder.stdout.close()

    def inside(self, pid: int | None = None) -> list[str]:
        """What to write before a command so that it runs on the bridge, or where process `pid` does."""
        return [
            "nsenter",
            "--target",
            str(pid or self.holder.pid),
            "--user",
            "--mount",
            "--net",
            "--preserve-credentials",
        ]

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self._programs}:{os.environ['PATH']}"}

    def run(
        self, *command: str, pid: int | None = None, check: bool = True, environment: dict[str, str] | None = None
    ) -> str:
        """Run a command on the bridge, or where process `pid` runs, and return what it writes."""
        done = subprocess.run(
            [*self.inside(pid), *command],
            env=self.environment | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout.strip()

    def name(self, names: dict[str, str]) -> None:
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        self._hosts.write_text("\n".join([*lines, ""]))  # in place, since it is mounted

    def update_names(self) -> None:
        self.name({pod.host: pod.address for pod in self.pods.values() if pod.address})

    def play(self, manifest: Manifest, scripts: Path) -> list[Pod]:
        """Start the pods of a StatefulSet, all at once."""
        made = [
            Pod(self, manifest, f"{manifest['metadata']['name']}-{i}", scripts)
            for i in range(manifest["spec"]["replicas"])
        ]
        for pod in made:
            self.pods[pod.name] = pod
            pod.start()
        return made


class Pod:
    """A pod of a StatefulSet, with the first of its containers."""

    def __init__(self, machines: Machines, manifest: Manifest, name: str, scripts: Path) -> None:
        self.machines = machines
        self.name = name
        self.host = f"{name}.{manifest['spec']['serviceName']}"
        self.address = ""
        self.volume = machines.folder / "volumes" / name
        self.log = machines.folder / f"{name}.log"
        (self._container,) = manifest["spec"]["template"]["spec"]["containers"]
        (self._port,) = [each["containerPort"] for each in self._container["ports"] if each["name"] != "bus"]
        self._scripts = scripts
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make it, with a new address and the volume that it had."""
        self.volume.mkdir(parents=True, exist_ok=True)
        self.address = next(self.machines.addresses)
        command = [*self._container["command"], *self._container.get("args", [])]
        # Not before it has its address; entering the namespace has left its folder.
        wrapped = ["unshare", "--net", "sh", "-c", 'cd "$0" && read -r go && exec "$@" </dev/null', str(self.volume)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.machines.inside(), *wrapped, *self._here(command)],
                env=self.machines.environment | self._environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        pid = self._process.pid
        holders = self._namespace(self.machines.holder.pid)
        wait_until(lambda: self._namespace(pid) not in (holders, self._namespace(os.getpid())), "the pod's namespace")
        outside = f"pod{pid}"
        self.machines.run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self.machines.run("ip", "link", "set", outside, "master", "bridge", "up")
        self.run("ip", "address", "add", f"{self.address}/16", "dev", "eth0")
        for device in ("lo", "eth0"):
            self.run("ip", "link", "set", device, "up")
        self.machines.update_names()
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.close()

    def kill(self) -> None:
        """End it as the loss of its machine would, its volume apart; its name goes too."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as Kubernetes does: what comes before the stop, SIGTERM, and the end of its name."""
        self.run(*self._here(self._container["lifecycle"]["preStop"]["exec"]["command"]))
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)
        self.kill()

    def forget(self) -> None:
        """Lose its volume."""
        shutil.rmtree(self.volume)

    def is_ready(self) -> bool:
        try:
            self.run(*self._here(self._container["readinessProbe"]["exec"]["command"]))
        except AssertionError:
            return False
        return True

    def run(self, *command: str) -> str:
        """Run a command in the pod. Raises AssertionError if it fails."""
        assert self._process is not None
        return self.machines.run(*command, pid=self._process.pid, environment=self._environment())

    def ask(self, *command: str) -> list[str]:
        """The lines of the reply to a command; none if nobody answers."""
        reply = self.machines.run(
            *("timeout", "5", "valkey-cli", "-e", "-h", self.address, "-p", str(self._port), *command), check=False
        )
        return [] if "Could not connect" in reply else reply.split("\n")

    def _end(self, number: int) -> None:
        self.address = ""
        self.machines.update_names()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            self._process.wait(PATIENCE)

    def _environment(self) -> dict[str, str]:
        fields = {"metadata.name": self.name, "status.podIP": self.address}
        return {
            each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]] for each in self._container.get("env", [])
        }

    def _here(self, command: list[str]) -> list[str]:
        """A command with the folders that the pod's mounts are here."""
        mounts = {"data": self.volume, "scripts": self._scripts}
        for mount in self._container["volumeMounts"]:
            command = [word.replace(mount["mountPath"], str(mounts[mount["name"]])) for word in command]
        return command

    @staticmethod
    def _namespace(pid: int) -> str:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
