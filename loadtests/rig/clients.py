"""Clients that keep every answer."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection, Iterable, Sequence


class Address(NamedTuple):
    """Where a server is, and whom to trust there; without that, it speaks plain HTTP."""

    port: int
    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None


class Client:
    """One keep-alive HTTP/1.1 connection, to a port of this machine or to an address."""

    def __init__(self, server: int | Address) -> None:
        self._at = Address(server) if isinstance(server, int) else server
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(
        self, path: str = "/", method: str = "POST", body: bytes = b"", **headers: str
    ) -> tuple[int, Any]:
        """Send a request and return the status and the decoded JSON. Raises OSError or IncompleteReadError."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._at.host, self._at.port, ssl=self._at.tls)
        assert self._reader is not None
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._at.host}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body or method == "PUT":
            lines.append(f"Content-Length: {len(body)}")
        try:
            self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            status = int(head.split(" ", 2)[1])
            length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
            payload = await self._reader.readexactly(length) if method != "HEAD" else b""
        except BaseException:
            self.close()
            raise
        if "connection: close" in head:
            self.close()
        return status, json.loads(payload) if payload else None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


@dataclass
class Call:
    """One claim as its client saw it; `status` is 0 if no answer came, `sent` and `at` are when it began and ended, on
    the monotonic clock."""

    n: int
    status: int
    body: Any
    key: str | None = None
    counter: str = "default"
    at: float = field(default_factory=time.monotonic)
    sent: float = 0.0

    @property
    def numbers(self) -> Iterable[int]:
        """The numbers that the claim owns."""
        if self.status != 200:
            return range(0)
        if "numbers" in self.body:
            return [number for first, last in self.body["numbers"] for number in range(first, last + 1)]
        last = self.body["request_count"]
        return range(last - self.n + 1, last + 1)


@dataclass
class History:
    """Every answer of a run."""

    calls: list[Call] = field(default_factory=list)

    def counters(self) -> list[str]:
        """The counters that were claimed from."""
        return sorted({call.counter for call in self.calls})

    def of(self, counter: str) -> History:
        """The answers about one counter."""
        return History([call for call in self.calls if call.counter == counter])

    def admitted(self) -> dict[str, int]:
        """How many numbers claims own, of each counter."""
        return {counter: len(self.of(counter).owned()) for counter in self.counters()}

    def statuses(self) -> dict[int, int]:
        seen: dict[int, int] = {}
        for call in self.calls:
            seen[call.status] = seen.get(call.status, 0) + 1
        return seen

    def owned(self) -> list[int]:
        """Every number that some claim owns, sorted; one that is owned twice stands there twice.

        Only for a history of one counter. Calls with one idempotency key are one claim.
        """
        keyed = {(call.key, number) for call in self.calls if call.key is not None for number in call.numbers}
        plain = [number for call in self.calls if call.key is None for number in call.numbers]
        return sorted([*plain, *(number for _, number in keyed)])

    def summary(self) -> str:
        """How many calls got which answer."""
        kinds: dict[str, int] = {}
        for call in self.calls:
            detail = call.body.get("title", "") if isinstance(call.body, dict) else ""
            kind = f"{call.status} {detail}".strip()
            kinds[kind] = kinds.get(kind, 0) + 1
        return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


async def hammer(
    server: int | Address,
    clients: int,
    claims: Iterable[int],
    path: str | Sequence[str] = "/counters/default",
    keys: bool = False,
    *,
    retry: Collection[int] = (),
    pace: float = 0.0,
    rest: float = 0.0,
    history: History | None = None,
) -> History:
    """Send a claim of each size in `claims` from as many keep-alive clients, as fast as they are answered.

    Where `path` is several, the claims go to each in turn.

    With `keys`, each claim has an idempotency key; an answer whose status is in `retry` (0: none came) is then asked
    for again with it. A client waits for `rest` seconds after any answer, and for `pace` after any but 200.
    """
    history = History() if history is None else history
    work = zip(claims, cycle([path] if isinstance(path, str) else path), strict=False)

    async def run(number: int) -> None:
        client = Client(server)
        for index, (n, target) in enumerate(work):
            counter = target.removeprefix("/counters/").strip("/") or "default"
            key = f"{number}-{index}-{os.urandom(8).hex()}" if keys else None
            headers: dict[str, Any] = {"Idempotency_Key": key} if key else {}
            while True:
                sent = time.monotonic()
                try:
                    status, body = await client.request(f"{target}?n={n}" if n != 1 else target, **headers)
                except (OSError, asyncio.IncompleteReadError):
                    status, body = 0, None
                history.calls.append(Call(n, status, body, key, counter, sent=sent))
                if status != 200 and pace:
                    await asyncio.sleep(pace)
                if rest:
                    await asyncio.sleep(rest)
                if key is None or status not in retry:
                    break
        client.close()

    await asyncio.gather(*(run(number) for number in range(clients)))
    return history
