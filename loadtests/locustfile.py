"""The same claims on Granian and on uvicorn, side by side in Locust.

    locust -f loadtests/locustfile.py --class-picker      # web UI; or `make locust`
    locust -f loadtests/locustfile.py --headless -u 32 -r 32 -t 30s GranianSteady UvicornSteady

It starts both servers, with equal workers and a store each, and stops them when it ends. One user class is loaded at a
time, in turns of --turn seconds, so that none has to share the cores. LOADTESTS_TARGETS names
servers that are already up instead (`granian=http://10.0.0.1:8080,uvicorn=http://10.0.0.2:8080`), with their admin
token in PYTHONRICING_ADMIN_TOKEN.

Scenarios, one user class for each server: *Steady* (admitted claims all the time), *Burst* (a sale opens: everybody at
once, then halted; with the shape of that name), *SoldOut* (refusals only), *Named* (many counters, claims of several
numbers), *Sale* (each claim is held until it is confirmed, a third of the buyers abandons; it ends once sold out).
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from locust import FastHttpUser, LoadTestShape, events, task
from locust.user.task import LOCUST_STATE_RUNNING

from loadtests import side_by_side
from loadtests.checks import Checker, SaleChecker, Wrong
from loadtests.contenders import Contender
from loadtests.rig.processes import Unavailable
from loadtests.rig.waiting import port_is_taken
from loadtests.running import ContenderError, Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from locust.contrib.fasthttp import ResponseContextManager
    from locust.env import Environment

    #: Says what is wrong with an answer, of which it gets the status and the body, and how many numbers it is about.
    Check = Callable[[int, bytes, int], None]

SERVERS = ("granian", "uvicorn")
#: Servers that are already up, by name.
TARGETS = dict(pair.split("=", 1) for pair in os.environ.get("LOADTESTS_TARGETS", "").split(",") if pair)
TOKEN = os.environ.get("PYTHONRICING_ADMIN_TOKEN")

#: End the test after so many claims on a server, whatever the time; 0: never.
CLAIMS = int(os.environ.get("LOADTESTS_CLAIMS", "0"))

STEADY_LIMIT = 100_000_000
BURST_LIMIT = 1_000
NAMED_COUNTERS = 100
NAMED_LIMIT = 1_000_000
SALE_LIMIT = 300
#: Seconds for which a buyer's number is held; and the part of the buyers that abandons it.
SALE_HOLD = 1
ABANDON = 1 / 3
#: Seconds for claims on their way at the end of a test, so that every number has an owner who was told of it.
STOP_PATIENCE = 12

#: Seconds after which no worker holds what it was lent, and no buyer's hold is open.
SETTLED = 5

log = logging.getLogger("loadtests")


class Turn:
    """When the users of a class may claim, and how many claims of theirs are on their way."""

    def __init__(self) -> None:
        self.gate = Event()
        self.on_their_way = 0


class ClaimUser(FastHttpUser):
    """Claims on one server, named by it in tables and charts."""

    abstract = True
    network_timeout = 10
    connection_timeout = 10
    row: side_by_side.Row
    turn: Turn
    #: Of each counter, with the limit that it was set to.
    checkers: dict[str, Checker]
    #: The counters of this scenario, with their limits.
    counters: dict[str, int]
    scenario = ""
    checker = Checker
    #: Whether all claims are of one number.
    singles = True

    def claim(self, counter: str, size: int = 1) -> None:
        """One claim when their turn has come; a refusal is a correct answer."""
        with self.in_turn() as come:
            if come:
                self.ask(f"/counters/{counter}?n={size}", self.checkers[counter], size)

    @contextmanager
    def in_turn(self) -> Iterator[bool]:
        """Whether their turn has come, which doesn't end inside of this; a user that is stopped has none any more."""
        while not self.turn.gate.wait(0.2):
            if self._state != LOCUST_STATE_RUNNING:
                yield False
                return
        self.turn.on_their_way += 1
        try:
            yield True
        finally:
            self.turn.on_their_way -= 1

    def ask(self, path: str, checker: Checker, size: int, check: Check | None = None) -> ResponseContextManager:
        """One request about so many numbers, and what its checker, or `check` of it, says of the answer."""
        name = f"{self.row.server.name} {self.scenario}"
        response: ResponseContextManager
        with self.client.post(path, name=name, catch_response=True) as response:
            self._judge(checker, check or checker.check, response, size)
        return response

    def _judge(self, checker: Checker, check: Check, response: ResponseContextManager, size: int) -> None:
        wrong, given = None, checker.given
        try:
            check(response.status_code, response.content or b"", size)
        except Wrong as error:
            wrong = str(error)
        self.row.record(
            response.request_meta["response_time"],
            failed=wrong is not None,
            admitted=checker.given - given,
            refused=response.status_code == 429,
        )
        if wrong is None:
            response.success()
        else:
            response.failure(wrong)
        if CLAIMS and self.row.requests == CLAIMS:
            gevent.spawn(self.environment.runner.quit)


class Steady(ClaimUser):
    abstract = True
    scenario = "steady"
    counters = {"steady": STEADY_LIMIT}  # noqa: RUF012

    @task
    def one(self) -> None:
        self.claim("steady")


class Burst(ClaimUser):
    abstract = True
    scenario = "burst"
    counters = {"burst": BURST_LIMIT}  # noqa: RUF012

    @task
    def one(self) -> None:
        self.claim("burst")


class SoldOut(ClaimUser):
    abstract = True
    scenario = "sold out"
    counters = {"sold-out": 0}  # noqa: RUF012

    @task
    def one(self) -> None:
        self.claim("sold-out")


class Named(ClaimUser):
    abstract = True
    scenario = "named"
    singles = False
    #: All different, so that an answer about another counter shows.
    counters = {f"named-{number}": NAMED_LIMIT + number for number in range(NAMED_COUNTERS)}  # noqa: RUF012

    @task
    def several(self) -> None:
        self.claim(f"named-{random.randrange(NAMED_COUNTERS)}", random.choice((1, 1, 1, 2, 5)))


class Sale(ClaimUser):
    """Numbers are held while they are paid for; a third of the buyers doesn't, and what they held expires."""

    abstract = True
    scenario = "sale"
    counters = {"sale": SALE_LIMIT}  # noqa: RUF012
    checker = SaleChecker

    @task
    def buy(self) -> None:
        checker = self.checkers["sale"]
        assert isinstance(checker, SaleChecker)
        with self.in_turn() as come:
            if not come:
                return
            held = self.ask(f"/counters/sale?hold={SALE_HOLD}", checker, 1)
            if held.status_code == 429:
                checker.sold_out |= "retry-after" not in (held.headers or {})
                return
            if held.status_code != 200:
                return
            if random.random() < ABANDON:
                checker.back += 1
                return
            self.ask(f"/counters/sale/holds/{json.loads(held.content)['hold']}", checker, 1, checker.confirm)

    @classmethod
    def is_over(cls) -> bool:
        return all(isinstance(each, SaleChecker) and each.sold_out for each in cls.checkers.values())


class SaleOpens(LoadTestShape):
    """Everybody at once, for 20 seconds. Choose it together with the Burst classes."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        if self.get_run_time() > (options.run_time or 20):
            return None
        users = options.num_users or 200
        return users, users


def _user_classes() -> None:
    """`GranianSteady`, `UvicornSteady`, …: the classes that Locust finds in this file."""
    scenarios = (Steady, Burst, SoldOut, Named, Sale)
    for name in TARGETS or SERVERS:
        server = side_by_side.Server(name, "", None)
        for scenario in scenarios:
            class_name = f"{name.title().replace('-', '')}{scenario.__name__}"
            row = side_by_side.Row(server, scenario.scenario)
            body = {"abstract": False, "row": row, "turn": Turn(), "checkers": {}, "host": "", "__module__": __name__}
            globals()[class_name] = type(class_name, (scenario,), body)


_user_classes()


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    parser.add_argument(
        "--server-workers", type=int, default=2, help="Workers of each server under test", include_in_web_ui=False
    )
    parser.add_argument(
        "--server-store", default="redis", help="Store of each server: redis, unix or memory", include_in_web_ui=False
    )
    parser.add_argument(
        "--turn", type=float, default=2.0, help="Seconds that one class is loaded", include_in_web_ui=False
    )


class SideBySide:
    """The servers of a run: started, watched, set up for each test, and stopped."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.stack = ExitStack()
        self.token = TOKEN
        self.own = 0.0
        self._turns: gevent.Greenlet | None = None

    def open(self) -> None:
        """Raises ContenderError or Unavailable."""
        options = self.environment.parsed_options
        assert options is not None
        for name in TARGETS or SERVERS:
            classes = [kind for kind in _all_classes() if kind.row.server.name == name]
            if name in TARGETS:
                server = side_by_side.Server(name, TARGETS[name], None)
            else:
                contender = Contender.parse(f"{name}+{options.server_store}").with_workers(options.server_workers)
                running = self.stack.enter_context(Running(contender, STEADY_LIMIT, token=self.token))
                self.token = running.token
                server = side_by_side.Server(name, running.url, running.pid)
                log.info("%s is up at %s", contender.key, running.url)
            for kind in classes:
                kind.row.server, kind.host = server, server.url
                self._set_up(kind)

    def close(self) -> None:
        self.stack.close()

    def _in_play(self) -> list[type[ClaimUser]]:
        return [kind for kind in self.environment.user_classes if issubclass(kind, ClaimUser)]

    def rows(self) -> list[side_by_side.Row]:
        return [kind.row for kind in self._in_play()]

    def start_test(self) -> None:
        """Every figure at 0. Nothing that takes time: until it is done, Locust's page sees no test running."""
        for kind in self._in_play():
            kind.row.limit = sum(kind.counters.values())
        self.reset()
        # The servers of a scenario one after the other.
        kinds = sorted(self._in_play(), key=lambda kind: kind.scenario)
        self._turns = gevent.spawn(self._take_turns, kinds)

    def _take_turns(self, kinds: list[type[ClaimUser]]) -> None:
        """One class after the other, every second round from the last to the first, so that what drifts meets all."""
        options, runner = self.environment.parsed_options, self.environment.runner
        assert options is not None
        assert runner is not None
        begun = time.perf_counter()
        while True:
            for kind in kinds:
                turn, row = kind.turn, kind.row
                row.begin()
                turn.gate.set()
                try:
                    gevent.sleep(options.turn)
                finally:
                    turn.gate.clear()
                    while turn.on_their_way:
                        gevent.sleep(0.001)
                    row.end(time.perf_counter() - begun)
                    self.own = max(self.own, runner.current_cpu_usage)
            kinds = kinds[::-1]
            if all(issubclass(kind, Sale) and kind.is_over() for kind in kinds):
                gevent.spawn(runner.quit if options.headless else runner.stop)
                return

    def stop_turns(self) -> None:
        """No more claims; those on their way are waited for."""
        if self._turns is not None:
            self._turns.kill()
            self._turns = None
        for kind in self._in_play():
            kind.turn.gate.clear()

    def stop_test(self) -> None:
        """Hold the counters against what clients were given; and a new sale for the next test, so that no worker
        remembers the end of this one when it opens."""
        for kind in self._in_play():
            kind.row.faults += self._audit(kind)
            if issubclass(kind, (Burst, Sale)):
                self._set_up(kind)
            for fault in kind.row.faults:
                log.error("%s: %s", kind.row.server.name, fault)
            if kind.row.faults:
                self.environment.process_exit_code = 1

    def _audit(self, kind: type[ClaimUser]) -> list[str]:
        """What is wrong with the sums of a scenario's counters; workers that count for themselves have none."""
        options = self.environment.parsed_options
        assert options is not None
        if not TARGETS and options.server_store == "memory" and options.server_workers > 1:
            return []
        faults = []
        for counter, checker in kind.checkers.items():
            try:
                checker.balance(_count(f"{kind.row.server.url}/counters/{counter}"), singles=kind.singles)
            except Wrong as wrong:
                faults.append(f"{counter}: {wrong}")
        return faults

    def reset(self) -> None:
        self.own = 0.0
        for row in self.rows():
            row.reset()

    def _set_up(self, kind: type[ClaimUser]) -> None:
        """The scenario's counters at 0 with their limits. Raises ContenderError."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        for counter, limit in kind.counters.items():
            url = f"{kind.row.server.url}/counters/{counter}"
            if not self.token:
                raise ContenderError(f"{kind.row.server.name}: its token is needed in PYTHONRICING_ADMIN_TOKEN")
            _request("DELETE", url, headers)
            status, _ = _request("PUT", url, headers, json.dumps({"limit": limit}).encode())
            if status not in (200, 201):
                raise ContenderError(f"{kind.row.server.name} could not set up counter {counter}: status {status}")
        kind.checkers = {counter: kind.checker(limit) for counter, limit in kind.counters.items()}

    def report(self) -> None:
        options = self.environment.parsed_options
        if options is not None and options.headless:
            print("\nSide by side\n" + side_by_side.as_text(self.rows()) + "\n" + side_by_side.saturation(self.own))
        if options is not None and options.csv_prefix:
            Path(f"{options.csv_prefix}_side_by_side.csv").write_text(side_by_side.as_csv(self.rows()))


def _all_classes() -> list[type[ClaimUser]]:
    return [kind for kind in globals().values() if isinstance(kind, type) and hasattr(kind, "row")]


def _count(url: str) -> int:
    """What a counter reads, once no worker holds a lease and no buyer a hold. Raises Wrong."""
    deadline = time.monotonic() + SETTLED
    while True:
        status, body = _request("GET", url, {})
        if status != 200:
            raise Wrong(f"it can't be read: status {status}")
        reading = json.loads(body)
        if not (reading.get("leased") or reading.get("held")) or time.monotonic() > deadline:
            return int(reading["count"])
        gevent.sleep(0.02)


def _request(method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, bytes]:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, data=body, headers=headers, method=method), timeout=10) as response:
            return response.status, response.read()
    except HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


@events.init.add_listener
def _open(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    if environment.web_ui is not None and port_is_taken(environment.web_ui.port):
        raise SystemExit(f"loadtests: port {environment.web_ui.port} is taken: choose another one with --web-port")
    if not options.user_classes and not options.class_picker:
        environment.user_classes = [kind for kind in _all_classes() if kind.__name__.endswith("Steady")]
    if not any(issubclass(kind, Burst) for kind in environment.user_classes) and not options.class_picker:
        environment.shape_class = None
    environment.stop_timeout = environment.stop_timeout or STOP_PATIENCE
    lab = SideBySide(environment)
    try:
        lab.open()
    except (ContenderError, Unavailable, ValueError) as error:
        lab.close()
        raise SystemExit(f"loadtests: {error}") from None
    environment.events.test_start.add_listener(lambda **_: lab.start_test())
    environment.events.test_stopping.add_listener(lambda **_: lab.stop_turns())
    environment.events.test_stop.add_listener(lambda **_: lab.stop_test())
    environment.events.reset_stats.add_listener(lambda **_: lab.reset())
    environment.events.quitting.add_listener(lambda **_: lab.report())
    environment.events.quit.add_listener(lambda **_: lab.close())
    if environment.web_ui is not None:
        side_by_side.add_tab(environment, lab.rows, lambda: lab.own)
