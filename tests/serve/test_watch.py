"""`pythonricing watch`: what the terminal shows, and when it ends."""

from __future__ import annotations

import http.server
import io
import os
import pty
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from loadtests.rig.waiting import PATIENCE, free_port, wait_until
from pythonricing.serve.terminal import Screen
from pythonricing.serve.terminal import service as address_of
from pythonricing.telemetry.events import Event, Shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

PROGRAM = str(Path(sys.executable).with_name("pythonricing"))
#: A user and a password as Basic authentication has them.
ME = b64encode(b"me:pass word").decode()
LARGEST = "the-largest_counter.that-there-can-be_with.64-characters-in-it.1"


def event(seconds: int, *counters: Shown, whole: bool = False, server: int = 1) -> Event:
    told = [(seconds - 1, sum(each.admitted for each in counters), 3)]
    return Event(seconds * 1000, server, "here", "redis://there", whole, told, list(counters))


def counter(name: str, count: int, limit: int = 100, lost: bool = False, refused: int = 0, epoch: int = 1) -> Shown:
    return Shown(name, count, limit, epoch, lost, count, refused)


def lines_of(screen: Screen, width: int = 120, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=False)
    console.print(screen)
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(shown) < height, "the screen scrolls"
    assert all(len(line) <= width for line in shown)
    return [line.rstrip() for line in shown]


def test_the_terminal_shows_counts_rates_and_what_is_halted() -> None:
    screen = Screen("http://here")
    screen.take(event(0, counter("default", 0), counter("other", 5), whole=True))
    screen.take(event(2, counter("default", 60, refused=8)))
    lines = lines_of(screen)
    assert lines[1].split()[:2] == ["admitted", "60/s"]
    assert lines[3] == "2 counters"
    default, other = (line.split() for line in lines[-2:])
    assert (default[0], default[-5:]) == ("default", ["60", "100", "30", "4", "open"])
    assert other[-5:] == ["5", "100", "0", "0", "open"]
    screen.take(event(3, counter("default", 100, refused=8)))
    assert lines_of(screen)[3] == "2 counters, 1 halted"
    assert lines_of(screen)[-2].endswith("HALTED")
    screen.take(
        event(4, counter("default", 10, refused=5, epoch=2), whole=True, server=2)
    )  # a reset, by another server
    assert lines_of(screen)[-1].split()[-5:] == ["10", "100", "0", "0", "open"]
    screen.take(None)
    assert lines_of(screen)[0].endswith("no connection, trying again …")


@pytest.mark.parametrize("width", [160, 120, 80, 40])
def test_names_stay_whole_and_bars_go_first(width: int) -> None:
    screen = Screen("http://127.0.0.1:8080")
    names = [f"coupon.of-the-summer-{number:02}" for number in range(5)]
    screen.take(event(1, *(counter(name, 123_456, 1_000_000) for name in names), whole=True))
    lines = lines_of(screen, width)
    assert all(any(line.startswith(name) for line in lines) for name in names)
    assert ("━" in "".join(lines)) == (width >= 120)
    assert ("refused/s" in "".join(lines)) == (width >= 80)
    assert sum("123,456" in line for line in lines) == 5
    screen.take(event(2, Shown(LARGEST, 2**53 - 1, 2**53 - 1, 1, False, 1, 0)))
    text = "".join(lines_of(screen, width))
    assert LARGEST in text.replace("  ", "")
    assert text.count("9,007,199,254,740,991") == 2


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 10), (40, 24), (40, 12)])
def test_what_needs_attention_is_never_below_the_fold(width: int, height: int) -> None:
    screen = Screen("http://127.0.0.1:8080")
    busy = [counter(f"a-{number:03}", 10) for number in range(300)]
    screen.take(event(1, *busy, counter("z-halted", 7, 7), counter("z-lost", 7, lost=True), whole=True))
    screen.take(event(2, *(counter(each.name, 90) for each in busy)))
    lines = lines_of(screen, width, height)
    assert lines[3] == "302 counters, 1 lost, 1 halted"
    assert lines[5].startswith("z-lost")
    assert lines[6].startswith("z-halted")
    # More of them than rows: their names.
    screen.take(event(3, *(counter(f"z-{number:02}", 7, 7) for number in range(21)), counter("z-last", 5, lost=True)))
    text = " ".join(" ".join(lines_of(screen, width, 16)).split())
    assert "324 counters, 2 lost, 22 halted lost: z-last, z-lost halted: z-00, z-01" in text
    assert text.endswith("z-20, z-halted")


def test_piped_it_is_a_line_a_second(empty_valkey: RedisServer, service: Callable[..., Service]) -> None:
    """Its end is that of whoever reads it."""
    running = service(empty_valkey.url, workers=2, limit=3, wait_for="/readyz")
    for _ in range(5):
        running.get("/")
    command = (
        f"{PROGRAM} watch 127.0.0.1:{running.port}/watch/ | head -n 3"  # without a scheme, and as a browser has it
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=PATIENCE)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.endswith(" refused/s: default 3/3 halted") for line in lines)
    assert len({line.split()[0] for line in lines}) > 1
    assert "\x1b" not in done.stdout
    assert "Traceback" not in done.stderr


def test_a_piped_line_says_what_needs_attention_and_what_is_busiest() -> None:
    screen = Screen("http://here")
    assert screen.line().endswith("connecting …")
    screen.take(event(1, *(counter(f"c{number}", number) for number in range(20)), whole=True))
    screen.take(event(2, counter("c19", 100), counter("c3", 5, lost=True), counter("c7", 50)))
    said = screen.line().partition("refused/s: ")[2].split(", ")
    assert said[:3] == ["c3 5/100 lost", "c19 100/100 halted", "c7 50/100"]
    assert (len(said), said[-1]) == (11, "10 more")
    away = event(3)
    away.away = True
    screen.take(away)
    assert screen.line().endswith("the store doesn't answer")


def test_the_terminal_shows_what_is_leased() -> None:
    screen = Screen("http://here")
    leased = counter("default", 60)
    leased.leased = 12
    screen.take(event(1, leased, whole=True))
    assert "open, 12 leased" in " ".join(" ".join(lines_of(screen)).split())


def test_the_terminal_shows_what_is_held_and_when_a_counter_renews() -> None:
    screen = Screen("http://here")
    sold_out = counter("coupons", 100)
    sold_out.held, sold_out.renews = 3, 3_723_500
    screen.take(event(1, sold_out, whole=True))
    assert "HALTED, 3 held, renews in 1:02:02" in " ".join(" ".join(lines_of(screen)).split())
    screen.take(event(2))  # nothing has changed but the time
    assert "renews in 1:02:01" in " ".join(" ".join(lines_of(screen, width=20)).split())
    screen.take(event(4000))  # its clock is ahead of the store's
    assert "renews in 0:00:00" in " ".join(" ".join(lines_of(screen)).split())


def test_watch_in_a_terminal_connects_again_and_ends_with_ctrl_c(
    empty_valkey: RedisServer, service: Callable[..., Service]
) -> None:
    running = service(empty_valkey.url, workers=2, limit=3, wait_for="/readyz")
    for _ in range(5):
        running.get("/")
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, "watch", running.url],
        stdout=terminal,
        stderr=subprocess.PIPE,
        # Whatever started the tests may ignore it, and then children do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(terminal)
    os.set_blocking(screen, False)
    shown = ""

    def shows(words: str) -> bool:
        """Whether the words have come to the screen; what is before them is not looked at again."""
        nonlocal shown
        with suppress(OSError):
            shown += os.read(screen, 1 << 16).decode(errors="replace")
        _, found, after = shown.partition(words)
        if found:
            shown = after
        return bool(found)

    try:
        wait_until(lambda: shows("HALTED"), "the counter to be shown")
        # Silence is noticed too: five seconds of it.
        workers = running.worker_pids()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: shows("no connection"), "the silence to be noticed")
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: shows("  live"), "a connection after the silence")
        running.terminate()
        wait_until(lambda: shows("no connection"), "the end to be noticed")
        service(empty_valkey.url, workers=2, port=running.port, wait_for="/readyz")
        wait_until(lambda: shows("  live"), "another connection")
        wait_until(lambda: shows("HALTED"), "the counter to be shown again")
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        os.close(screen)
    assert (process.returncode, errors) == (0, b"")


def test_a_user_and_a_password_are_told_to_what_asks_for_them_and_shown_to_nobody() -> None:
    with answering(401) as port:
        said = failed(f"http://me:pass%20word@127.0.0.1:{port}")
        assert said == f"pythonricing: http://127.0.0.1:{port} has no live page: it answers 418 I'm a Teapot\n"
    assert "secret" not in failed("me:secret@127.0.0.1:port")
    assert address_of("http://me:pass%20word@here/watch") == ("http://here", "me:pass word")


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Something that answers, but is not the service; to the user of ME it is a teapot."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(418 if self.headers["Authorization"] == f"Basic {ME}" else status)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


def failed(address: str) -> str:
    """The one line of a watch that has nothing to watch, in a terminal and in a pipe."""
    done = subprocess.run([PROGRAM, "watch", address], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    shown, terminal = pty.openpty()
    again = subprocess.run([PROGRAM, "watch", address], stdout=terminal, stderr=terminal, check=False, timeout=PATIENCE)
    os.close(terminal)
    assert again.returncode == 2
    assert os.read(shown, 65536).decode().replace("\r\n", "\n") == done.stderr
    os.close(shown)
    return done.stderr


def test_a_dead_port_is_one_plain_line() -> None:
    port = free_port()
    assert (
        failed(f"http://127.0.0.1:{port}") == f"pythonricing: can't watch http://127.0.0.1:{port}: connection refused\n"
    )


def test_another_server_is_one_plain_line() -> None:
    with answering(404) as port:
        address = f"http://127.0.0.1:{port}"
        assert failed(address) == f"pythonricing: {address} has no live page: it answers 404 Not Found\n"


def test_what_is_no_word_keeps_its_capitals() -> None:
    assert failed("http://a b").startswith("pythonricing: can't watch http://a b: URL can't contain")


@pytest.mark.parametrize(
    "address", ["http://[::", "ftp://127.0.0.1", "http://127.0.0.1:port", "http://no.such.host.invalid"]
)
def test_an_address_that_is_none_is_one_plain_line(address: str) -> None:
    assert "Errno" not in failed(address)
