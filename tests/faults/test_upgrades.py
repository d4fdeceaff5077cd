"""Workers of an earlier version and of this one count in one store under load: exactly, or one closes and says so."""

from __future__ import annotations

import subprocess
from functools import partial
from typing import TYPE_CHECKING

import pytest

from loadtests.rig.clients import History
from loadtests.rig.judge import count_of, judge, workers
from loadtests.rig.load import ADMIN, COUNTERS, TOKEN, Load, put_counters
from loadtests.rig.service import ROOT, Service
from loadtests.rig.victims import PostgresVictim
from loadtests.rig.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from loadtests.rig.victims import Victim

#: Version 0.1.0, the last revision that knows no leases, and the last one that knows no holds.
FIRST, LEASELESS, HOLDLESS = "07ed495", "571f283", "f913145"
#: More than any load here claims.
MUCH = 10**9


@pytest.fixture(params=[FIRST, pytest.param(LEASELESS, marks=pytest.mark.slow), HOLDLESS])
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def before(revision: str, victim: Victim, tmp_path: Path) -> Iterator[Service]:
    """The service as it was at that revision."""
    found = subprocess.run(["git", "-C", ROOT, "archive", revision, "pythonricing"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"no history here: {found.stderr.decode()}")
    code = tmp_path / "before"
    code.mkdir()
    subprocess.run(["tar", "-x", "-C", code], input=found.stdout, check=True)
    running = Service(tmp_path, victim.url, admin_token=TOKEN, store_timeout=8, halt_cache=0)
    running.environment["PYTHONPATH"] = str(code)
    [log_config] = code.rglob("granian-log.json")
    running.command[-1:-1] = ["--working-dir", str(code), "--log-config", str(log_config)]
    yield running.start("/readyz")
    assert str(code) in running.output.read_text()  # it was that code
    running.stop()


def admitted(load: Load) -> int:
    return load.history.statuses().get(200, 0)


def test_workers_of_both_versions_count_exactly_in_one_store(
    before: Service, revision: str, victim: Victim, service: Callable[..., Service]
) -> None:
    # What the schema leaves of their procedures is nothing: those workers are closed.
    closes = isinstance(victim, PostgresVictim)
    put_counters(before, MUCH)
    old = Load(before, clients=8, keys=True, pace=0.01)
    old.wait_for(300)
    after = service(victim.url, "/readyz", store_timeout=20, halt_cache=0)
    new = Load(after, clients=8, keys=True, pace=0.01)
    new.wait_for(300)
    if not closes:
        so_far = admitted(old)
        wait_until(lambda: admitted(old) > so_far + 300, "the old workers to go on beside the new ones")
    # The new ones' operator has the last word on how many there are.
    limit = max(count_of(after, name) for name in COUNTERS) + 1000
    put_counters(after, limit)
    wait_until(lambda: all(count_of(after, name) >= limit for name in COUNTERS), "every number to be taken")
    history = History([*new.stop().calls, *old.stop().calls])
    # What a worker that is closed has on a lease is spent, as that of one that is killed.
    judge(history, after, before, limit=limit, statuses={200, 429, 503}, killed=closes)
    assert all(count_of(after, name) == limit for name in COUNTERS)
    assert workers(before)
    assert workers(after)
    if closes:
        status, problem = before.get("/readyz")
        assert status == 503
        assert "newer than this pythonricing knows" in problem["detail"]
    else:
        assert 503 not in history.statuses(), history.summary()
        assert sum(history.admitted().values()) == limit * len(COUNTERS)


def is_set(service: Service) -> bool:
    return service.get("/counters/seats", "PUT", b'{"limit": 5}', **ADMIN)[0] in (200, 201)


def test_what_operators_say_to_one_version_the_other_obeys_or_closes(
    before: Service, revision: str, victim: Victim, service: Callable[..., Service]
) -> None:
    if isinstance(victim, PostgresVictim):
        pytest.skip("its workers are closed, as the other test sees")
    put_counters(before, 100)
    after = service(victim.url, "/readyz", store_timeout=20, halt_cache=0)
    for name in COUNTERS:
        assert [each.get(f"/counters/{name}?n=10", "POST")[0] for each in (before, after)] == [200, 200]
    put_counters(after, 21)
    assert [before.get(f"/counters/{name}", "POST")[0] for name in COUNTERS] == [200] * 3
    assert [after.get(f"/counters/{name}", "POST")[0] for name in COUNTERS] == [429] * 3
    put_counters(before, 22)
    wait_until(lambda: after.get("/counters/default", "POST")[0] == 200, "the raised limit to be obeyed")
    assert before.get("/counters/default", "POST")[0] == 429
    # A counter that begins anew, by whichever version, is either the same one to both or closed to both.
    for one, other in ((after, before), (before, after)):
        for act, words in (("DELETE", b""), ("PUT", b'{"limit": 5}')):
            one.get("/counters/seats", act, words, **ADMIN)
        answers = [each.get("/counters/seats", "POST") for each in (other, one, other)]
        numbers = [body["request_count"] for status, body in answers if status == 200]
        assert {status for status, _ in answers} <= {200, 503}
        assert len(set(numbers)) == len(numbers), answers
        # Whichever word is the first to notice a loss does nothing else.
        wait_until(partial(is_set, after), "the counter to be set")


@pytest.mark.parametrize("revision", [HOLDLESS])
def test_a_counter_with_holds_is_closed_to_workers_that_know_none_and_others_are_not(
    before: Service, revision: str, victim: Victim, service: Callable[..., Service]
) -> None:
    if isinstance(victim, PostgresVictim):
        pytest.skip("its workers are closed, as the other test sees")
    put_counters(before, 100)
    after = service(victim.url, "/readyz", store_timeout=20, halt_cache=0)
    asked = [(each, name) for each in (before, after, before) for name in COUNTERS]
    assert {each.get(f"/counters/{name}", "POST")[0] for each, name in asked} == {200}
    assert after.get("/counters/seats?hold=600", "POST")[0] == 200
    status, problem = before.get("/counters/seats", "POST")
    assert (status, "newer than this pythonricing knows" in problem["detail"]) == (503, True), problem
    assert after.get("/counters/seats", "POST")[0] == 200
    assert {each.get("/counters/default", "POST")[0] for each in (before, after)} == {200}
