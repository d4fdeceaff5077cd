"""Fixtures: the images as users build them, and playfile.yaml as users play it."""

from __future__ import annotations

import base64
import json
import re
import secrets
import shutil
import socket
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.waiting import free_port, wait_until
from tests.containers.podman import (
    IMAGE,
    POD,
    ROOT,
    SECRET,
    STORE_IMAGE,
    VOLUME,
    configure,
    make_image,
    podman,
    succeeds,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def base_images(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The images that ours start from. Skips what needs podman where podman can't run."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    configure(tmp_path_factory.mktemp("podman"))
    script = Path(__file__).with_name("base-images.sh")
    made = subprocess.run([script], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no base images: {made.stderr.strip()[-500:]}")
    tried = subprocess.run(
        ["podman", "run", "--rm", "--network", "none", STORE_IMAGE, "valkey-server", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"podman can't run a container here: {tried.stderr.strip()[-500:]}")


@pytest.fixture(scope="session")
def image(base_images: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, built."""
    make_image(tmp_path_factory.mktemp("build"))
    return IMAGE


@dataclass
class Played:
    """playfile.yaml, being played."""

    port: int
    token: str
    playfile: str

    def up(self) -> None:
        podman("play", "kube", "-", stdin=self.playfile)
        self.wait()

    def down(self) -> None:
        podman("play", "kube", "--down", "-", stdin=self.playfile)

    def wait(self) -> None:
        wait_until(lambda: succeeds("exec", f"{POD}-app", "probe", "8080", "/readyz"), "the service to be ready")


@pytest.fixture(scope="module")
def played(image: str) -> Iterator[Played]:
    """playfile.yaml played on an empty volume, with an admin token; on another port where 8080 is taken."""
    for kind, name in (("pod", POD), ("volume", VOLUME), ("secret", SECRET)):
        if succeeds(kind, "inspect", name):
            pytest.skip(f"there is a {kind} {name} already, which these tests would destroy")
    playfile = (ROOT / "playfile.yaml").read_text()
    port = 8080
    if not _is_free(port):
        port = free_port()
        playfile = re.sub(r"hostPort: 8080\b", f"hostPort: {port}", playfile)
    token = secrets.token_hex(16)
    data = {"token": base64.b64encode(token.encode()).decode()}
    if _podman_version() >= (4, 4):
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": data}
        podman("play", "kube", "-", stdin=json.dumps(secret))
    else:  # podman 4.3 stores a Secret in a form that it can't read
        podman("secret", "create", SECRET, "-", stdin=json.dumps(data))
    each = Played(port, token, playfile)
    try:
        each.up()
        yield each
    finally:
        podman("pod", "rm", "--force", POD, check=False)
        podman("volume", "rm", "--force", VOLUME, check=False)
        podman("secret", "rm", SECRET, check=False)


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


def _podman_version() -> tuple[int, ...]:
    found = re.findall(r"\d+", podman("version", "--format", "{{.Client.Version}}"))
    return tuple(map(int, found[:2]))
