"""Requests as bytes, and what tests of HTTP ask again and again."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtests.rig.service import Service

TOKEN = "s3cret"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


def count(api: Service, name: str = "default") -> int:
    counted: int = api.get(f"/counters/{name}")[1]["count"]
    return counted


def exchange(api: Service, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes; the status, the headers and the body of the first answer (0 if there is none)."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as client:
        client.sendall(request)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split(" ")[1]) if head else 0, headers, body


def raw(api: Service, method: str, path: str, *headers: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    return exchange(api, "\r\n".join(lines).encode() + body)
