"""The counters without HTTP: opened, used and closed by an application of its own, as the page shows it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from importlib.resources import files
from math import inf, nan
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from loguru import logger
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import pythonricing
import pythonricing.library
from loadtests.rig.waiting import free_port
from pythonricing import StateLost, StoreUnavailable, StoreURLError
from pythonricing.counting.counters import Counters
from pythonricing.counting.model import Answer
from pythonricing.stores import create_store
from tests.docs_check import ROOT, blocks
from tests.support import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.rig.postgres import PostgresServer
    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

URL = "redis://127.0.0.1:6379/0"
SCRIPT, FASTAPI, MIDDLEWARE = (code for code in blocks((ROOT / "docs/library.md").read_text()) if "import" in code)


def example(code: str, url: str) -> dict[str, Any]:
    """The names that an example of the page defines, with another store."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code.replace(URL, url), "docs/library.md", "exec", dont_inherit=True), names)
    return names


def loaded(code: str) -> set[str]:
    """The packages and the parts of ours that a program has loaded when it ends."""
    code += "\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return {name if name.startswith("pythonricing") else name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_it_loads_nothing_else() -> None:
    names = loaded("import pythonricing")
    assert not {name for name in names if name.startswith("pythonricing.")}
    assert not names & {"msgspec", "loguru", "redis", "starlette", "granian", "click"}


def test_opening_it_loads_neither_web_nor_server_parts() -> None:
    names = loaded(f"""
import asyncio, pythonricing
async def main():
    async with pythonricing.open_counters("redis://127.0.0.1:{free_port()}"): pass
asyncio.run(main())
""")
    assert "pythonricing.stores.redis.store" in names
    assert not {name for name in names if name.startswith(("pythonricing.web", "pythonricing.serve"))}
    assert not names & {"starlette", "granian", "uvicorn", "prometheus_client", "click", "asyncpg"}


def test_what_it_says_it_has_is_there() -> None:
    for name in pythonricing.__all__:
        assert getattr(pythonricing, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'milk'"):
        _ = pythonricing.milk


def test_the_first_example_claims(empty_valkey: RedisServer) -> None:
    script = SCRIPT.replace(URL, empty_valkey.url)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True 2 500\n"


@pytest.mark.parametrize("kind", ["memory", "redis", "postgresql"])
def test_it_keeps_the_same_promises_on_every_store(
    kind: str, empty_valkey: RedisServer, empty_postgres: PostgresServer
) -> None:
    url = {"memory": "memory://", "redis": empty_valkey.url, "postgresql": empty_postgres.url}[kind]

    async def main() -> None:
        async with pythonricing.open_counters(url, store_timeout=60) as counters:
            assert (await counters.configure("seats", 100)).limit == 100
            answers = await asyncio.gather(*(counters.claim("seats", 3) for _ in range(50)))
            admitted = sorted(answer.request_count for answer in answers if answer.admitted)
            assert admitted == list(range(3, 100, 3))
            assert (await counters.read("seats")).count == 99
            first = await counters.claim("seats", key="k")
            assert (await counters.claim("seats", key="k")) == first
            with pytest.raises(pythonricing.KeyReused):
                await counters.claim("seats", 2, key="k")
            assert (await counters.put("seats", 200, most=2)).most == 2
            with pytest.raises(pythonricing.TooMany):
                await counters.claim("seats", 3)
            assert (await counters.reset("seats")).count == 0
            await counters.delete("seats")
            for act in (counters.claim, counters.read, counters.reset, counters.delete):
                with pytest.raises(pythonricing.NoSuchCounter):
                    await act("seats")
            assert (await counters.claim("default")).limit == 100

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["memory", "redis", "postgresql"])
def test_it_holds_gives_back_and_knows_claimants_and_windows_on_every_store(
    kind: str, empty_valkey: RedisServer, empty_postgres: PostgresServer
) -> None:
    url = {"memory": "memory://", "redis": empty_valkey.url, "postgresql": empty_postgres.url}[kind]

    async def main() -> None:
        async with pythonricing.open_counters(url, store_timeout=60) as counters:
            made = await counters.put("seats", 10, each=4, every="366d")
            assert (made.each, made.every, made.ends > made.now) == (4, "366d", True)
            held = await counters.claim("seats", 4, hold=600, claimant="alice")
            assert (held.request_count, len(held.hold), held.expires > made.now / 1e6 + 590) == (4, 22, True)
            refused = await counters.claim("seats", claimant="alice")
            assert (refused.admitted, refused.capped, refused.each) == (False, True, 4)
            assert refused.retry_after == refused.resets > 602  # whose holds expire before isn't known
            for _ in range(2):
                assert (await counters.confirm("seats", held.hold, 3)).numbers == ((1, 3),)
            with pytest.raises(pythonricing.HoldResolved):
                await counters.release("seats", held.hold)
            other = await counters.claim("seats", hold=1, claimant="alice")
            with pytest.raises(pythonricing.TooMany):
                await counters.confirm("seats", other.hold, 2)
            while (await counters.read("seats")).held:  # noqa: ASYNC110 (a fact of the store)
                await asyncio.sleep(0.05)
            with pytest.raises(pythonricing.HoldExpired):
                await counters.confirm("seats", other.hold)
            assert [await counters.give_back("seats", [(1, 1), (3, 4)]) for _ in range(2)] == [2, 0]
            counter = await counters.read("seats")
            assert (counter.count, counter.issued, counter.given_back) == (1, 5, 4)
            for act, error in (
                (counters.claim("seats"), pythonricing.ClaimantMissing),
                (counters.claim("default", claimant="alice"), pythonricing.ClaimantUnwanted),
                (counters.confirm("seats", "A" * 22), pythonricing.NoSuchHold),
                (counters.give_back("seats", [(6, 6)]), pythonricing.NoSuchNumber),
                (counters.put("seats", 3, each=4), pythonricing.BadRules),
                (counters.claim("seats", hold=86_401, claimant="alice"), ValueError),
                (counters.claim("seats", claimant="a b"), ValueError),
                (counters.give_back("seats", [(2, 1)]), ValueError),
            ):
                with pytest.raises(error):
                    await act

    asyncio.run(main())


def test_it_counts_beside_the_service(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    running = service(empty_valkey.url, "/readyz", limit=10)
    key = "7c0e5fd2-58a1-4f0e-9a3b-2d6c1b9e4f70"
    assert running.get("/", "POST", Idempotency_Key=f'"{key}"')[1] == {"request_count": 1, "limit": 10}

    async def main() -> None:
        async with pythonricing.open_counters(empty_valkey.url) as counters:
            assert (await counters.claim("default", key=key)).request_count == 1
            assert (await counters.claim("default")).request_count == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "n", "key", "error"),
    [
        *((name, 1, None, ValueError) for name in ("", ".", "..", "a b", "a" * 65)),
        *(("seats", n, None, ValueError) for n in (0, -1, 2**53)),
        ("seats", 1.0, None, TypeError),
        *(("seats", 1, key, ValueError) for key in ("", "a b", "é", "k" * 256)),
    ],
)
def test_a_claim_that_can_not_be_counts_nothing(name: str, n: Any, key: str | None, error: type[Exception]) -> None:
    async def main() -> None:
        async with pythonricing.open_counters("memory://") as counters:
            await counters.configure("seats", 10)
            with pytest.raises(error):
                await counters.claim(name, n, key=key)
            assert (await counters.read("seats")).count == 0

    asyncio.run(main())


@pytest.mark.parametrize(("limit", "most"), [(-1, None), (2**53, None), (5, 0), (5, 2**53)])
def test_a_limit_that_can_not_be_creates_nothing(limit: int, most: int | None) -> None:
    async def main() -> None:
        async with pythonricing.open_counters("memory://") as counters:
            with pytest.raises(ValueError, match="whole number"):
                await counters.put("seats", limit, most=most)
            with pytest.raises(pythonricing.NoSuchCounter):
                await counters.read("seats")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "options", "error"),
    [
        ("oracle://db", {}, StoreURLError),
        ("memory://", {"store_replicas": 1}, StoreURLError),
        ("postgresql://db/x", {"store_replicas": 1}, StoreURLError),
        ("memory://", {"store_timeout": 0}, ValueError),
        *(("memory://", {"store_timeout": bad}, ValueError) for bad in (-1, 3601, inf, nan, "2", True, None)),
        *(("memory://", {"store_replicas": bad}, ValueError) for bad in (-1, 101, "1", True, 1.5)),
        *(("memory://", {"on_loss": bad}, ValueError) for bad in ("Halt", "shrug", "", None)),
        *(("memory://", {"halt_cache": bad}, ValueError) for bad in (-1, 61, inf, nan)),
        *(("memory://", {"lease": bad}, ValueError) for bad in (-1, 11, inf, nan)),
        *((bad, {}, TypeError) for bad in (None, 5, b"memory://")),
    ],
)
def test_what_can_not_be_opened_says_so(url: Any, options: dict[str, Any], error: type[Exception]) -> None:
    async def main() -> None:
        with pytest.raises(error):
            async with pythonricing.open_counters(url, **options):
                pass

    asyncio.run(main())


def test_a_store_that_does_not_answer_is_waited_for_and_no_longer(redis_server: Callable[..., RedisServer]) -> None:
    async def main() -> None:
        store = redis_server()
        async with pythonricing.open_counters(store.url) as counters:
            await counters.configure("seats", 10)
        await asyncio.to_thread(store.kill)
        async with pythonricing.open_counters(store.url, store_timeout=0.2) as counters:
            for act in (counters.claim("seats"), counters.read("seats"), counters.put("seats", 5)):
                with pytest.raises(StoreUnavailable):
                    await act
        async with pythonricing.open_counters(store.url, store_timeout=60) as counters:
            waiting = asyncio.create_task(counters.claim("seats"))
            await asyncio.to_thread(store.start)
            assert (await waiting).admitted

    asyncio.run(main())


def test_a_loss_is_noticed_and_only_an_operator_ends_it(redis_server: Callable[..., RedisServer]) -> None:
    async def main() -> None:
        store = redis_server()
        async with pythonricing.open_counters(store.url, store_timeout=60) as counters:
            await counters.configure("seats", 10)
            await counters.claim("seats", 5)
            store.command("FLUSHALL")
            with pytest.raises(StateLost):
                await counters.claim("seats")
            async with pythonricing.open_counters(store.url, store_timeout=60) as started:
                with pytest.raises(StateLost):
                    await started.configure("seats", 10)
                assert (await started.put("seats", 10)).count == 5
            assert (await counters.claim("seats")).request_count == 6

    asyncio.run(main())


def test_closed_counters_say_so() -> None:
    async def main() -> None:
        async with pythonricing.open_counters("memory://") as counters:
            pass
        for act in (counters.claim, counters.read, counters.reset, counters.delete):
            with pytest.raises(RuntimeError, match="closed"):
                await act("default")

    asyncio.run(main())


def test_a_claim_that_is_cancelled_is_logged_and_found_again_by_its_key(
    redis_server: Callable[..., RedisServer],
) -> None:
    told: list[dict[str, Any]] = []
    sink = logger.add(lambda message: told.append(message.record["extra"]))

    async def main() -> None:
        store = redis_server()
        async with pythonricing.open_counters(store.url, store_timeout=60) as counters:
            await counters.configure("seats", 10)
            store.pause()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await counters.claim("seats", key="k")
            store.resume()
            assert (await counters.claim("seats")).request_count == 2
            assert (await counters.claim("seats", key="k")).request_count == 1

    asyncio.run(main())
    logger.remove(sink)
    assert {"counter": "seats", "orphaned": 1, "n": 1} in told


def test_a_claim_that_is_cancelled_once_its_answer_is_there_is_logged() -> None:
    told: list[dict[str, Any]] = []
    sink = logger.add(lambda message: told.append(message.record["extra"]))

    async def main() -> None:
        async with pythonricing.open_counters("memory://", lease=0) as counters:
            await counters.configure("seats", 3)
            await counters.claim("seats", key="k")
            for n, key in ((1, None), (1, "k"), (2, None)):  # a number, one that a key has already, a refusal
                task = asyncio.create_task(counters.claim("seats", n, key=key))
                while (waited := task._fut_waiter) is None or not waited.done():  # type: ignore[attr-defined]  # noqa: ASYNC110
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert (await counters.read("seats")).count == 2
            counters._orphan("seats", 2, Answer(True, 7, 9, ((3, 3), (7, 7))))

    asyncio.run(main())
    logger.remove(sink)
    assert [each for each in told if "orphaned" in each] == [
        {"counter": "seats", "orphaned": 2, "n": 1},
        {"counter": "seats", "orphaned": 7, "n": 2, "numbers": ((3, 3), (7, 7))},
    ]


def test_its_options_are_those_of_the_store_and_of_the_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def spy(what: str) -> None:
        make = getattr(pythonricing.library, what)

        def made(*args: Any, **options: Any) -> Any:
            given.append((args, options))
            return make(*args, **options)

        monkeypatch.setattr(pythonricing.library, what, made)

    async def main() -> None:
        url = f"redis://127.0.0.1:{free_port()}"
        options = {"store_timeout": 3.0, "store_replicas": 2, "on_loss": "raise", "halt_cache": 0.5, "lease": 0.03}
        async with pythonricing.open_counters(url, **options):  # type: ignore[arg-type]
            pass
        assert given[0][0] == (url, 3.0, 2, "raise")
        assert given[1][1] == {"timeout": 3.0, "halt_cache": 0.5, "lease": 0.03}

    spy("create_store")
    spy("Counters")
    asyncio.run(main())


def test_all_refusals_are_told_when_it_is_closed() -> None:
    told: list[dict[str, Any]] = []
    sink = logger.add(lambda message: told.append(message.record["extra"]))

    async def main() -> None:
        async with pythonricing.open_counters("memory://", halt_cache=0) as counters:
            await counters.configure("seats", 0)
            for _ in range(5):
                await counters.claim("seats")

    asyncio.run(main())
    logger.remove(sink)
    assert sum(each.get("refused", 0) for each in told) == 5


def test_what_a_claim_or_a_limit_can_not_be_is_told_before_the_store_is_asked() -> None:
    async def main() -> None:
        async with pythonricing.open_counters("memory://") as counters:
            await counters.put("seats", 5000)
            await counters.put("shared", 5000, each=5000)
            for act in (
                counters.claim("seats", 1025, hold=5),
                counters.claim("shared", 1025, claimant="alice"),
                counters.configure("seats", -1),
                counters.configure("seats", 2**53),
            ):
                with pytest.raises(ValueError, match=r"at most 1024|whole number"):
                    await act
            for limit in (True, 1.5, None):
                with pytest.raises(TypeError):
                    await counters.configure("seats", limit)  # type: ignore[arg-type]
            assert (await counters.read("seats")).limit == 5000

    asyncio.run(main())


def test_it_says_that_it_is_typed() -> None:
    assert files("pythonricing").joinpath("py.typed").is_file()


async def ask(app: Any, requests: int, path: str = "/", method: str = "POST", **headers: str) -> list[httpx.Response]:
    """Requests at once to an application whose lifespan runs."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://app") as client:
            return list(await asyncio.gather(*(client.request(method, path, headers=headers) for _ in range(requests))))


def test_the_dependency_admits_exactly_the_limit(empty_valkey: RedisServer) -> None:
    app = example(FASTAPI.replace("limit=500", "limit=5"), empty_valkey.url)["app"]
    twice = asyncio.run(ask(app, 2, "/orders", **{"idempotency-key": "k"}))
    assert [(each.status_code, each.json()) for each in twice] == [(200, {"seat": 1})] * 2
    answers = asyncio.run(ask(app, 20, "/orders"))
    assert sorted(each.json()["seat"] for each in answers if each.status_code == 200) == [2, 3, 4, 5]
    [bad] = asyncio.run(ask(app, 1, "/orders", **{"idempotency-key": "a b"}))
    assert bad.status_code == 422
    refused = [each.json()["detail"] for each in answers if each.status_code == 429]
    assert refused == ["all 5 seats are taken"] * 16


def test_the_middleware_admits_exactly_the_limit(empty_valkey: RedisServer) -> None:
    lifespan = example(FASTAPI.replace("limit=500", "limit=3"), empty_valkey.url)["lifespan"]
    admission = example(MIDDLEWARE, empty_valkey.url)["Admission"]

    async def page(request: Any) -> PlainTextResponse:
        return PlainTextResponse("welcome")

    def application(counter: str) -> Starlette:
        routes = [Route("/", page, methods=["POST"])]
        return Starlette(routes=routes, middleware=[Middleware(admission, counter)], lifespan=lifespan)

    answers = sorted((each.status_code, each.text) for each in asyncio.run(ask(application("seats"), 20)))
    assert answers == [(200, "welcome")] * 3 + [(429, "sold out")] * 17
    [answer] = asyncio.run(ask(application("nobody"), 1))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_the_dependency_is_a_503_while_the_store_is_away(redis_server: Callable[..., RedisServer]) -> None:
    store = redis_server()
    app = example(FASTAPI, store.url)["app"]

    async def main() -> None:
        async with app.router.lifespan_context(app) as state:
            await asyncio.to_thread(store.kill)

            async def with_state(scope: Any, receive: Any, send: Any) -> None:
                await app({**scope, "state": dict(state)}, receive, send)

            async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://app") as client:
                answer = await client.post("/orders", timeout=60)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["memory", "redis", "postgresql"])
def test_what_can_not_be_disturbs_no_other_claim(
    kind: str, empty_valkey: RedisServer, empty_postgres: PostgresServer
) -> None:
    url = {"memory": "memory://", "redis": empty_valkey.url, "postgresql": empty_postgres.url}[kind]

    async def main() -> None:
        async with pythonricing.open_counters(url, store_timeout=60) as counters:
            await counters.put("seats", 100, each=100)
            asked: list[Any] = [
                counters.claim("seats", True, claimant="x"),
                counters.claim("seats", hold=None, claimant="x"),  # type: ignore[arg-type]
                counters.claim("seats", hold=True, claimant="x"),
                counters.claim("seats", claimant=None),  # type: ignore[arg-type]
                counters.confirm("seats", None),  # type: ignore[arg-type]
                counters.confirm("seats", "A" * 22, n=True),
                counters.release("seats", 5),  # type: ignore[arg-type]
                counters.give_back("seats", iter([(True, True)])),  # type: ignore[arg-type]
                counters.give_back("seats", [(1,)]),  # type: ignore[list-item]
                counters.put("seats", 100, every=None),  # type: ignore[arg-type]
            ]
            bad = asyncio.gather(*asked, return_exceptions=True)
            good = await asyncio.gather(*(counters.claim("seats", claimant="ok") for _ in range(50)))
            assert {type(error) for error in await bad} == {TypeError}
            assert sorted(answer.request_count for answer in good) == list(range(1, 51))
            assert await counters.give_back("seats", iter([(7, 8), (1, 2)])) == 4  # type: ignore[arg-type]
            assert (await counters.read("seats")).count == 46

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["memory", "redis", "postgresql"])
def test_a_resolution_is_logged_once_and_waiting_helps_where_holds_leave_room(
    kind: str, empty_valkey: RedisServer, empty_postgres: PostgresServer
) -> None:
    url = {"memory": "memory://", "redis": empty_valkey.url, "postgresql": empty_postgres.url}[kind]

    async def main() -> None:
        store = create_store(url, 60)
        recorder = Recorder()
        counters = Counters(store, recorder, timeout=60, halt_cache=0)
        await counters.open()
        await counters.put("seats", 5)
        held = await counters.claim("seats", 2, hold=600)
        other = await counters.claim("seats", 1, hold=600)
        for _ in range(2):
            await counters.confirm("seats", held.hold, 1)
            await counters.release("seats", other.hold)
        assert [event[0] for event in recorder.told].count("resolved") == 2
        await counters.claim("seats", 2, hold=600)
        assert [(await counters.claim("seats", size)).retry_after > 0 for size in (3, 4, 5)] == [True, True, False]
        await counters.close()

    asyncio.run(main())
