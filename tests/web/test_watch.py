"""The live page and its events: what they say, what they cost, and that they never hold anything up."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import signal
import socket
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from loadtests.rig.clients import hammer
from loadtests.rig.waiting import PATIENCE, wait_until
from pythonricing.telemetry.events import TICK_SECONDS
from pythonricing.web.watch import MAX_WATCHERS
from tests.stores.support import lending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

ADMIN: dict[str, Any] = {"Authorization": "Bearer t"}


class Stream:
    """A reader of Server-Sent Events."""

    def __init__(self, running: Service) -> None:
        self._client = socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE)
        self._client.sendall(b"GET /watch/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        self._lines = self._client.makefile("rb")
        self.head = b"".join(iter(self._lines.readline, b"\r\n")).decode().lower()
        assert self.head.startswith("http/1.1 200"), self.head
        #: Every counter as it was told last, and the seconds.
        self.counters: dict[str, dict[str, Any]] = {}
        self.seconds: dict[int, list[int]] = {}

    def event(self) -> dict[str, Any] | None:
        """The next event; None at the end of the stream."""
        for line in self._lines:
            if line.startswith(b"data: "):
                event: dict[str, Any] = json.loads(line[6:])
                if event["whole"]:
                    self.counters = {}
                for name in event["gone"]:
                    del self.counters[name]
                self.counters |= {counter["name"]: counter for counter in event["counters"]}
                self.seconds |= {second: claims for second, *claims in event["seconds"]}
                return event
        return None

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for _ in range(60):
            event = self.event()
            assert event is not None
            if condition(event):
                return event
        raise AssertionError(f"not in 60 events; the last: {event}")

    def until_shown(self, condition: Callable[[dict[str, Any]], bool], name: str = "default") -> dict[str, Any]:
        """Wait until a counter is as the condition wants it."""
        self.until(lambda event: name in self.counters and condition(self.counters[name]))
        return self.counters[name]

    def claims(self) -> list[int]:
        """How many claims were admitted and refused in the seconds that were told."""
        return [sum(second[index] for second in self.seconds.values()) for index in (0, 1)]

    def close(self) -> None:
        self._lines.close()
        self._client.close()


@contextmanager
def watching(running: Service, streams: int = 1) -> Iterator[list[Stream]]:
    with ExitStack() as stack:
        opened = []
        for _ in range(streams):
            opened.append(Stream(running))
            stack.callback(opened[-1].close)
        yield opened


@pytest.mark.parametrize("server", ["granian", "uvicorn"])
def test_any_worker_streams_the_counters_as_they_move(
    server: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, command=server, workers=4, limit=20, wait_for="/readyz")
    with watching(running, streams=8) as streams:
        for stream in streams:
            assert "content-type: text/event-stream" in stream.head
            assert "cache-control: no-store" in stream.head
            assert stream.until_shown(lambda counter: True)["count"] == 0
        asyncio.run(hammer(running.port, 10, [1] * 50, "/"))
        for stream in streams:
            counter = stream.until_shown(lambda counter: counter["count"] == 20 and counter["refused"] == 30)
            del counter["epoch"]
            expected = {"name": "default", "count": 20, "limit": 20, "lost": False, "admitted": 20, "refused": 30}
            assert counter == {**expected, "leased": 0, "held": 0, "renews": 0}
        servers = {told["server"] for stream in streams if (told := stream.event())}
        assert len(servers) == 1


@pytest.mark.parametrize("server", ["granian", "uvicorn"])
def test_the_last_five_minutes_are_there_at_once_from_any_worker_also_of_those_that_died(
    server: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, command=server, workers=4, limit=20, wait_for="/readyz")
    asyncio.run(hammer(running.port, 10, [1] * 50, "/"))
    with watching(running) as [stream]:
        stream.until(lambda event: stream.claims() == [20, 30])
    victim = running.worker_pids()[-1]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in running.worker_pids() and len(running.worker_pids()) >= 4, "another worker")
    wait_until(lambda: running.get("/readyz")[0] == 200, "the service to be ready")
    with watching(running, streams=8) as streams:
        for stream in streams:
            first = stream.event()
            assert first is not None
            assert first["whole"]
            assert stream.claims() == [20, 30]


def test_an_event_tells_what_has_changed_and_names_server_and_store(
    empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, workers=1, admin_token="t", wait_for="/readyz")
    for name in ("a", "b"):
        assert running.get(f"/counters/{name}", "PUT", b'{"limit": 5}', **ADMIN)[0] == 201
    with watching(running) as [stream]:
        first = stream.until(lambda event: stream.counters.keys() >= {"a", "b"})
        assert (first["node"], first["store"]) == (platform.node(), empty_valkey.url)
        assert running.get("/counters/a", "POST")[0] == 200
        changed = stream.until(lambda event: stream.counters["a"]["count"] == 1)
        assert {counter["name"] for counter in changed["counters"]} == {"a"}
        assert running.get("/counters/b", "DELETE", **ADMIN)[0] == 204
        assert stream.until(lambda event: bool(event["gone"]))["gone"] == ["b"]


def test_watching_counts_nothing_and_reads_once_a_second_however_many_watch(
    empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, workers=1, wait_for="/readyz")

    def reads() -> int:
        with socket.create_connection(("127.0.0.1", empty_valkey.port)) as client:
            client.sendall(b"INFO commandstats\r\n")
            time.sleep(0.1)
            stats = client.recv(65536).decode()
        found = re.search(r"cmdstat_zrange:calls=(\d+)", stats)
        return int(found[1]) if found else 0

    with watching(running, streams=20) as streams:
        for stream in streams:
            stream.event()
        before, began = reads(), streams[0].event()
        for _ in range(3):
            for stream in streams:
                ended = stream.event()
        after = reads()
        assert began is not None
        assert ended is not None
        assert after - before <= (ended["time"] - began["time"]) / 1000 / TICK_SECONDS + 2
        assert streams[0].counters["default"]["count"] == 0
    quiet = reads()
    wait_until(lambda: reads() == reads() and reads() <= quiet + 2, "nobody to read any more")


@pytest.mark.parametrize("command", ["granian", "uvicorn", "serve", "serve-uvicorn"])
def test_fifty_streams_do_not_hold_up_the_end(
    command: str, empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    """A server that waited for them would be killed (workers-kill-timeout) or wait for ever."""
    running = service(empty_valkey.url, command=command, workers=2, wait_for="/readyz")
    with watching(running, streams=50) as streams:
        for stream in streams:
            assert stream.event()
        began = time.monotonic()
        assert running.terminate(signal.SIGTERM) == 0
        assert time.monotonic() - began < 25  # Granian kills its workers after 30
        for stream in streams:
            while stream.event():
                pass


@pytest.mark.parametrize("server", ["granian", "uvicorn"])
def test_whoever_left_is_forgotten(server: str, empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    """More streams one after the other than a worker has at once."""
    running = service(empty_valkey.url, command=server, workers=1, wait_for="/readyz")

    def turned_away() -> bool:
        with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as client:
            client.sendall(b"GET /watch/events HTTP/1.1\r\nHost: x\r\n\r\n")
            return client.recv(12) == b"HTTP/1.1 503"

    with watching(running, streams=MAX_WATCHERS) as streams:
        assert streams[-1].event()
        assert turned_away()
        assert running.get("/")[0] == 200
    wait_until(lambda: not turned_away(), "a place")


def test_a_store_that_is_away_is_said_and_the_stream_goes_on(
    redis_server: Callable[..., RedisServer], service: Callable[..., Service]
) -> None:
    store = redis_server()
    running = service(store.url, workers=1, wait_for="/readyz")
    with watching(running) as [stream]:
        stream.until_shown(lambda counter: True)
        store.kill()
        stream.until(lambda event: event["away"])
        with watching(running) as [later]:
            assert later.until_shown(lambda counter: True)["count"] == 0  # the newest that is known
        store.start()
        stream.until(lambda event: not event["away"])


def test_the_page_is_one_file_with_a_strict_policy(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, workers=1, wait_for="/readyz")
    with urlopen(f"{running.url}/watch", timeout=PATIENCE) as answer:
        body, headers = answer.read().decode(), answer.headers
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=[\"'](?!data:|\?)|@import|url\(", body)
    assert " style=" not in body
    assert " onclick=" not in body


def test_it_can_be_switched_off(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, workers=1, wait_for="/readyz", watch="off")
    assert running.get("/watch")[0] == 404
    assert running.get("/watch/events")[0] == 404
    with urlopen(f"{running.url}/metrics", timeout=PATIENCE) as answer:
        assert answer.status == 200


def test_events_tell_what_is_leased(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, workers=1, limit=10**6, wait_for="/readyz")
    with watching(running) as [stream], lending(empty_valkey.url, "default"):
        stream.until(lambda event: stream.counters.get("default", {}).get("leased") == 8)
