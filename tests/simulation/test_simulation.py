"""Histories on fixed seeds keep every promise; the same seed is the same history; broken mechanisms are noticed."""

from __future__ import annotations

import asyncio

import pytest

from tests.simulation import crowd
from tests.simulation.mutants import MUTANTS, SCRIPTS, mutated
from tests.simulation.report import explain, trace
from tests.simulation.scene import simulate
from tests.simulation.seeds import FAILED_ONCE, NOTICED_AT
from tests.simulation.world import Process, World

#: Histories that every run of the tests goes through, beside those that have failed once.
ALWAYS = range(60)


@pytest.mark.parametrize("seed", sorted({*ALWAYS, *FAILED_ONCE}))
def test_a_history_keeps_every_promise(seed: int) -> None:
    with crowd.quiet_collector():
        scene = simulate(seed)
    if scene.history.objections:
        pytest.fail("\n".join(explain(seed)))


@pytest.mark.parametrize("seed", [3, 17])
def test_a_seed_is_one_history_byte_for_byte(seed: int) -> None:
    assert list(trace(simulate(seed))) == list(trace(simulate(seed)))


@pytest.mark.parametrize("mutant", NOTICED_AT)
def test_a_broken_mechanism_is_noticed(mutant: str) -> None:
    assert crowd.find(mutant, [NOTICED_AT[mutant]]) is not None


def test_a_mutant_whose_text_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    where, _, new = MUTANTS["seen not sent"]
    monkeypatch.setitem(MUTANTS, "gone", MUTANTS["seen not sent"]._replace(where=where, old="no such text", new=new))
    with pytest.raises(LookupError, match="'gone' does not apply any more"), mutated("gone"):
        pass


def test_a_mutant_is_undone() -> None:
    before = [script.digest for script in SCRIPTS]
    for name in MUTANTS:
        with mutated(name):
            pass
    assert [script.digest for script in SCRIPTS] == before


def test_time_passes_only_when_nobody_has_anything_to_do() -> None:
    world = World.of(1)
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, world.time()))

    async def both() -> None:
        await asyncio.gather(sleeper("long", 3600.0), sleeper("short", 0.5))

    world.run_until_complete(both())
    assert seen == [("short", 0.5), ("long", 3600.0)]


def test_callbacks_of_a_process_run_first_in_first_out_and_processes_in_an_order_of_the_seed() -> None:
    def order(seed: int) -> list[tuple[str, int]]:
        world = World.of(seed)
        ran: list[tuple[str, int]] = []

        async def run() -> None:
            processes = [Process(world, name) for name in "ab"]
            for number in range(10):
                for process in processes:
                    process.call(lambda name=process.name, number=number: ran.append((name, number)))
            await asyncio.sleep(1)

        world.run_until_complete(run())
        return ran

    orders = [order(seed) for seed in range(5)]
    for ran in orders:
        assert [number for name, number in ran if name == "a"] == list(range(10))
        assert [number for name, number in ran if name == "b"] == list(range(10))
    assert len({tuple(ran) for ran in orders}) > 1
    assert order(3) == orders[3]


def test_a_paused_process_waits_and_a_killed_one_never_runs_again() -> None:
    world = World.of(1)
    ran: list[tuple[str, float]] = []

    async def run() -> None:
        paused, killed = Process(world, "paused"), Process(world, "killed")

        async def work(name: str) -> None:
            try:
                await asyncio.sleep(1)
                ran.append((name, world.time()))
            finally:
                ran.append((f"{name} cleaned up", world.time()))

        for process in (paused, killed):
            process.start(work(process.name))
        await asyncio.sleep(0.5)
        paused.pause()
        killed.kill()
        await asyncio.sleep(4)
        assert ran == []
        paused.resume()
        await asyncio.sleep(1)

    world.run_until_complete(run())
    assert ran == [("paused", 4.5), ("paused cleaned up", 4.5)]


def test_a_world_with_nothing_left_to_happen_says_so() -> None:
    world = World.of(1)
    with pytest.raises(RuntimeError, match="stands still"):
        world.run_until_complete(world.create_future())


def test_timeouts_and_cancellation_work_as_asyncio_promises() -> None:
    world = World.of(1)

    async def run() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.sleep(10)
        task = asyncio.ensure_future(asyncio.sleep(10))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return world.time()

    assert world.run_until_complete(run()) == 2
