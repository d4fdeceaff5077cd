"""The service with one fault each, so that the lab can show that it would notice: an app for each name.

Four are about the limit, the others happen to one claim in `EVERY`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from pythonricing.app import app as service

EVERY = 1_000


class Answer:
    """What the service said, held back until the mutant sends it."""

    def __init__(self) -> None:
        self.start: dict[str, Any] = {}
        self.body = b""

    async def take(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.body += message.get("body", b"")

    @property
    def status(self) -> int:
        return int(self.start["status"])

    @property
    def told(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    def says(self, status: int, **changes: Any) -> None:
        self.body = json.dumps(self.told | changes).encode()
        headers = [(name, value) for name, value in self.start["headers"] if name != b"content-length"]
        self.start = {
            **self.start,
            "status": status,
            "headers": [*headers, (b"content-length", b"%d" % len(self.body))],
        }

    async def send(self, send: Any) -> None:
        await send(self.start)
        await send({"type": "http.response.body", "body": self.body})


class Mutant:
    """The service, right in all that isn't a claim."""

    def __init__(self) -> None:
        self.claims = 0
        #: Whether one claim's fault is due.
        self.due = False
        self.done: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        claims = scope["type"] == "http" and (scope["path"] == "/" or scope["method"] == "POST")
        if not claims:
            if scope["type"] == "http" and scope["method"] == "DELETE":
                self.done.discard(scope["path"])
            await service(scope, receive, send)
            return
        self.claims += 1
        self.due = self.due or self.claims % EVERY == 0
        await self.claim(scope, receive, send)

    def first(self, path: str) -> bool:
        """Whether this has not happened to the counter yet."""
        if path in self.done:
            return False
        self.done.add(path)
        return True

    async def ask(self, scope: Any, receive: Any) -> Answer:
        answer = Answer()
        await service(scope, receive, answer.take)
        return answer

    async def claim(self, scope: Any, receive: Any, send: Any) -> None:
        answer = await self.ask(scope, receive)
        self.change(scope["path"], answer)
        await answer.send(send)

    def change(self, path: str, answer: Answer) -> None: ...


class Oversells(Mutant):
    """Admits one more than the limit: and says so, or tells the last number again."""

    def __init__(self, honest: bool) -> None:
        super().__init__()
        self.honest = honest

    def change(self, path: str, answer: Answer) -> None:
        if answer.status == 429 and answer.told["request_count"] == answer.told["limit"] and self.first(path):
            answer.says(200, request_count=answer.told["limit"] + self.honest)


class RefusesEarly(Mutant):
    """Keeps the last number: and says that there was one, or that there was none."""

    def __init__(self, honest: bool) -> None:
        super().__init__()
        self.honest = honest

    def change(self, path: str, answer: Answer) -> None:
        if answer.status == 200 and answer.told["request_count"] == answer.told["limit"]:
            answer.says(429, request_count=answer.told["limit"] - self.honest)


class Twice(Mutant):
    """Gives the number of the claim before once more."""

    last: Answer | None = None

    async def claim(self, scope: Any, receive: Any, send: Any) -> None:
        if self.due and self.last is not None:
            self.due = False
            await self.last.send(send)
            return
        answer = await self.ask(scope, receive)
        if answer.status == 200:
            self.last = answer
        await answer.send(send)


class Nobodys(Mutant):
    """Spends a number on nobody."""

    async def claim(self, scope: Any, receive: Any, send: Any) -> None:
        if self.due:
            self.due = False
            await self.ask(scope, receive)
        await super().claim(scope, receive, send)


class Unavailable(Mutant):
    """Answers an admission with 503."""

    def change(self, path: str, answer: Answer) -> None:
        if self.due and answer.status == 200:
            self.due = False
            answer.says(503)


class Swaps(Mutant):
    """Two claims that are on their way at once get each other's answers."""

    waiting: tuple[str, Answer, asyncio.Future[None]] | None = None

    async def claim(self, scope: Any, receive: Any, send: Any) -> None:
        answer = await self.ask(scope, receive)
        what = f"{scope['path']}?{scope['query_string'].decode()}"
        if self.waiting is not None and self.waiting[0] != what:
            _, other, done = self.waiting
            self.waiting = None
            answer.start, other.start, answer.body, other.body = other.start, answer.start, other.body, answer.body
            done.set_result(None)
        elif self.due and answer.status == 200:
            self.due = False
            done = asyncio.get_running_loop().create_future()
            self.waiting = (what, answer, done)
            await asyncio.wait([done], timeout=1)
            if not done.done():
                self.waiting = None
        await answer.send(send)


class OtherCounter(Mutant):
    """Counts a claim on another counter than was asked for."""

    last: str | None = None

    async def claim(self, scope: Any, receive: Any, send: Any) -> None:
        path, other = scope["path"], self.last
        self.last = path
        if self.due and other is not None and other != path and path != "/":
            self.due = False
            scope = {**scope, "path": other, "raw_path": other.encode()}
        await super().claim(scope, receive, send)


MUTANTS = {
    "oversells_honestly": Oversells(True),
    "oversells_hidden": Oversells(False),
    "refuses_early_honestly": RefusesEarly(True),
    "refuses_early_hidden": RefusesEarly(False),
    "twice": Twice(),
    "nobodys": Nobodys(),
    "unavailable": Unavailable(),
    "swaps": Swaps(),
    "other_counter": OtherCounter(),
}
globals().update(MUTANTS)
