"""Where the service listens: names, free ports and Unix sockets, under either server."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.service import default_signals, environment
from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing.serve.address import Address, free
from pythonricing.serve.failure import Failure
from tests.serve.commands import PROGRAM, fails

if TYPE_CHECKING:
    from pathlib import Path

    from loadtests.rig.redis import RedisServer


def ask(address: Address, path: str = "/readyz") -> bytes:
    try:
        with address.connect(5.0) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: client.recv(65536), b""))
    except OSError:
        return b""


@pytest.mark.parametrize("server", ["granian", "uvicorn"])
@pytest.mark.parametrize("options", [("--host", "localhost"), ("--host", "0.0.0.0"), ("--uds", "own.sock")])
def test_it_listens_on_a_name_a_free_port_or_a_socket_and_says_where(
    server: str, options: tuple[str, str], empty_valkey: RedisServer, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    words = [PROGRAM, "serve", "--server", server, "--port", "0", "--workers", "2", *options]
    with output.open("wb") as written:
        process = subprocess.Popen(
            words,
            cwd=tmp_path,
            stdout=written,
            stderr=subprocess.PIPE,
            env=environment({"store": empty_valkey.url}),
            preexec_fn=default_signals,
        )
    try:
        wait_until(lambda: b"\n" in output.read_bytes(), "the first line")
        url = json.loads(output.read_text().splitlines()[0])["record"]["extra"]["url"]
        if options[0] == "--uds":
            assert url == f"unix:{tmp_path / 'own.sock'}"
            address = Address("", 0, str(tmp_path / "own.sock"))
        else:
            host, _, port = url.removeprefix("http://").rpartition(":")
            assert host == {"localhost": "127.0.0.1"}.get(options[1], options[1])
            assert int(port) > 0
            address = Address(host, int(port))
        wait_until(lambda: ask(address).startswith(b"HTTP/1.1 200"), "the service to be ready")
        assert b'{"request_count":1,"limit":100}' in ask(address, "/")
        if address.uds:
            assert "Address already in use" in fails(
                tmp_path, "serve", "--uds", address.uds, "--port", "1", store=empty_valkey.url
            )
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, b"")
    assert not (tmp_path / "own.sock").exists()


@pytest.mark.parametrize("server", ["granian", "uvicorn"])
def test_it_serves_where_stdin_and_stdout_are_closed(server: str, empty_valkey: RedisServer, tmp_path: Path) -> None:
    address = Address("", 0, str(tmp_path / "own.sock"))
    process = subprocess.Popen(
        f"exec {PROGRAM} serve --server {server} --workers 1 --uds {address.uds} <&- >&-",
        shell=True,
        stderr=subprocess.PIPE,
        env=environment({"store": empty_valkey.url}),
        preexec_fn=default_signals,
    )
    try:
        wait_until(lambda: b'{"request_count":1,' in ask(address, "/"), "the service")
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, b"")


def test_a_free_port_is_free() -> None:
    address = free("127.0.0.1", 0)
    says = f"can't listen on 127.0.0.1:{address.port}: Address already in use"
    with socket.create_server((address.host, address.port)), pytest.raises(Failure, match=says):
        free("127.0.0.1", address.port)


def test_a_name_becomes_an_ipv4_address_where_it_has_one() -> None:
    assert free("localhost", 0).host == "127.0.0.1"
    assert free("::1", 0).url.startswith("http://[::1]:")
    for name in ("no.such.host.invalid", "a" * 300, "a..b"):
        with pytest.raises(Failure, match="can't listen on"):
            free(name, 0)


def test_ipv4_comes_first_where_a_name_has_both_and_everywhere_is_reached_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: both)
    assert free("localhost", 0).host == "127.0.0.1"
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: address)
    for host, reached in (("::", "::1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1")):
        assert Address(host, 80).connect(1.0) == (reached, 80)  # type: ignore[comparison-overlap]


def test_a_socket_that_was_left_behind_is_taken_away_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert free("", 0, str(path)).uds == str(path)
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(Failure, match="is no socket"):
        free("", 0, str(path))
    assert path.read_text() == "precious"
    with pytest.raises(Failure, match="too long"):
        free("", 0, str(tmp_path / ("d" * 100)))
    with pytest.raises(Failure, match="its folder can't be written"):
        free("", 0, str(tmp_path / "nowhere" / "own.sock"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Failure, match="is no socket"):
        free("", 0, str(tmp_path / "pipe"))
