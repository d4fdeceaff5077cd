"""Where a server listens, resolved once: Granian takes no names, and its workers would share a port with a stranger."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from pythonricing.serve.embedded import MAX_SOCKET_PATH
from pythonricing.serve.failure import Failure


class Address(NamedTuple):
    """A numeric host and a port, or the path of a Unix socket."""

    host: str
    port: int
    uds: str | None = None

    @property
    def url(self) -> str:
        """How logs and clients call it."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def connect(self, timeout: float) -> socket.socket:
        """A connection to whoever listens there. Raises OSError."""
        if self.uds is None:
            everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
            return socket.create_connection((everywhere.get(self.host, self.host), self.port), timeout)
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(timeout)
        try:
            client.connect(self.uds)
        except OSError:
            client.close()
            raise
        return client


def free(host: str, port: int, uds: str | None = None) -> Address:
    """The address that a server can listen on; port 0 becomes a free one. Raises Failure if there is none.

    A name's IPv4 address comes first: clients that are told `localhost` and those that are told 127.0.0.1 find it.
    """
    if uds is not None:
        return _free_path(uds)
    error: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as unknown:
        raise Failure(f"can't listen on {host}: {getattr(unknown, 'strerror', None) or unknown}") from None
    for family, kind, protocol, _, address in sorted(found, key=lambda each: each[0] != socket.AF_INET):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return Address(str(address[0]), probe.getsockname()[1])
        except OSError as failed:
            error = error or failed
    reason = f": {error.strerror or error}" if error is not None else ""
    raise Failure(f"can't listen on {host}:{port}{reason}")


def _free_path(path: str) -> Address:
    """A socket that nobody listens on any more is taken away, and nothing else is."""
    address = Address("", 0, str(Path(path).absolute()))
    assert address.uds is not None
    if len(os.fsencode(address.uds)) > MAX_SOCKET_PATH:
        raise Failure(f"can't listen on {path}: the path is too long for a Unix socket")
    try:
        if not stat.S_ISSOCK(Path(address.uds).stat().st_mode):
            raise Failure(f"can't listen on {path}: there is a file that is no socket")
        try:
            address.connect(1.0).close()
        except ConnectionRefusedError:
            Path(address.uds).unlink()
        else:
            raise Failure(f"can't listen on {path}: Address already in use")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Failure(f"can't listen on {path}: {error.strerror or error}") from None
    if not os.access(Path(address.uds).parent, os.W_OK | os.X_OK):
        raise Failure(f"can't listen on {path}: its folder can't be written")
    return address
