"""The exactness audit: many clients at once claim more than there is, and every number is written down."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadtests.contenders import Contender

#: Clients at once, each on one kept connection.
CLIENTS = 32
#: Claims for each number of the limit: enough to see overselling by a factor of 30.
CLAIMS_PER_NUMBER = 40
PATIENCE = 30.0


@dataclass
class Audit:
    """What the clients saw, beside what the counter says afterwards."""

    limit: int
    admitted: int = 0
    refused: int = 0
    failures: int = 0
    numbers: set[int] = field(default_factory=set)
    reading: int | None = None

    @property
    def distinct(self) -> int:
        return len(self.numbers)

    def verdict(self, contender: Contender) -> str:
        """In words; `exact` when exactly `limit` were admitted, each with a number of its own from 1 to `limit`."""
        if not contender.counts:
            return "does not count"
        if self.failures:
            return f"{self.failures} failed answers"
        if not contender.synced:
            return f"each of {contender.workers} workers counts for itself"
        if self.admitted > self.limit:
            return f"oversold by {self.admitted - self.limit}"
        if self.distinct < self.admitted:
            return f"{self.admitted - self.distinct} numbers given twice"
        if self.admitted < self.limit:
            return f"undersold by {self.limit - self.admitted}"
        if self.numbers != set(range(1, self.limit + 1)) or self.reading != self.limit:
            return f"the counter reads {self.reading}, the numbers go to {max(self.numbers)}"
        return "exact"

    def to_json(self, contender: Contender) -> dict[str, Any]:
        record = asdict(self) | {"distinct": self.distinct, "verdict": self.verdict(contender)}
        del record["numbers"]
        return record


class Client:
    """The least HTTP client that keeps its connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> tuple[int, Any]:
        """The status and the JSON. Raises OSError, EOFError or ValueError for anything but a whole answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        body = await reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), json.loads(body)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _claim(client: Client, audit: Audit, claims: list[int], deadline: float) -> None:
    while claims and time.monotonic() < deadline:
        claims.pop()
        try:
            status, answer = await client.get("/")
            if status == 429:
                audit.refused += 1
                continue
            if status != 200:
                raise ValueError(f"status {status}")
            audit.numbers.add(answer["request_count"])
            audit.admitted += 1
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            audit.failures += 1
            client.close()


async def _audit(port: int, limit: int) -> Audit:
    audit = Audit(limit)
    claims = [0] * (CLAIMS_PER_NUMBER * limit)
    clients = [Client(port) for _ in range(CLIENTS)]
    deadline = time.monotonic() + PATIENCE
    try:
        async with asyncio.timeout(PATIENCE + 5):
            await asyncio.gather(*(_claim(client, audit, claims, deadline) for client in clients))
            status, answer = await clients[0].get("/counters/default")
            audit.reading = answer.get("count") if status == 200 else None
    except (OSError, EOFError, ValueError):  # TimeoutError is an OSError
        audit.failures += 1
    finally:
        for client in clients:
            client.close()
    return audit


def audit(port: int, limit: int) -> Audit:
    """Claim from a contender on 127.0.0.1:`port` that was started with `limit` and has counted nothing yet."""
    return asyncio.run(_audit(port, limit))


async def _read(port: int, times: int) -> None:
    client = Client(port)
    try:
        for _ in range(times):
            await client.get("/counters/default")
    except (OSError, EOFError, ValueError):
        pass
    finally:
        client.close()


def warm_up_reading(port: int) -> None:
    """Bring every layer of an application to temperature without counting: 32 connections read the counter."""

    async def read() -> None:
        await asyncio.gather(*(_read(port, 20) for _ in range(CLIENTS)))

    asyncio.run(read())
