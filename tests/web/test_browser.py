"""The live page in a browser: the bar moves, and halted is plain to see and to hear."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from loadtests.rig.clients import hammer
from loadtests.rig.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadtests.rig.redis import RedisServer
    from loadtests.rig.service import Service

T = TypeVar("T")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
MILLISECONDS = PATIENCE * 1000

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]


def threaded(act: Callable[[], T]) -> T:
    """Playwright's event loop runs in this thread: what has one of its own needs another."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act).result()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def running(empty_valkey: RedisServer, service: Callable[..., Service]) -> Service:
    return threaded(lambda: service(empty_valkey.url, workers=4, limit=100, admin_token="t", wait_for="/readyz"))


@pytest.fixture
def errors() -> list[str]:
    """What the browser complained of: errors of the script, violations of the policy."""
    return []


@pytest.fixture
def page(browser: Any, running: Service, errors: list[str]) -> Iterator[Any]:
    yield from opened(browser, running, errors)


def opened(browser: Any, running: Service, errors: list[str], **context: Any) -> Iterator[Any]:
    with browser.new_context(**context) as each:
        page = each.new_page()
        page.set_default_timeout(MILLISECONDS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{running.url}/watch")
        page.wait_for_selector("li")
        yield page


def claim(running: Service, claims: int) -> None:
    threaded(lambda: asyncio.run(hammer(running.port, 4, [1] * claims, "/")))


def eventually(page: Any, condition: Callable[[], bool]) -> None:
    """Playwright's own waiting for a function needs eval, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, page.inner_text("body")
        page.wait_for_timeout(100)


def width(page: Any) -> float:
    share: float = page.evaluate("parseFloat(document.querySelector('.bar div').style.width)")
    return share


def test_the_bar_moves_until_it_is_halted(page: Any, running: Service, errors: list[str]) -> None:
    assert page.inner_text("h2 >> nth=1") == "default"
    assert (width(page), page.inner_text(".badge")) == (0, "open")
    claim(running, 40)
    eventually(page, lambda: page.inner_text(".number") == "40 of 100")
    assert width(page) == 40
    claim(running, 100)
    page.wait_for_selector("li.halted")
    assert (width(page), page.inner_text(".badge")) == (100, "HALTED")
    assert page.get_by_role("meter").get_attribute("aria-valuetext") == "100 of 100, halted"
    assert page.get_by_role("status").text_content() == "default: 100 of 100, halted"
    eventually(page, lambda: "L" in page.get_attribute("#chart .admitted", "d"))
    assert re.match(r"Now [\d.,]+ admitted", page.get_by_role("img").get_attribute("aria-label"))
    assert not errors


def test_a_reset_and_a_new_counter_show(page: Any, running: Service, errors: list[str]) -> None:
    claim(running, 100)
    page.wait_for_selector("li.halted")
    token: dict[str, Any] = {"Authorization": "Bearer t"}

    def change() -> None:
        running.get("/counters/default", "DELETE", **token)
        running.get("/counters/<b>", "PUT", b'{"limit": 5}', **token)
        running.get("/counters/a.new-one", "PUT", b'{"limit": 0}', **token)

    threaded(change)
    page.wait_for_selector("li >> nth=1")
    eventually(page, lambda: [each.inner_text() for each in page.query_selector_all(".badge")] == ["HALTED", "open"])
    assert page.eval_on_selector_all("li h2", "(all) => all.map((each) => each.textContent)") == [
        "a.new-one",
        "default",
    ]
    assert not errors


def test_it_connects_again_by_itself(
    page: Any, running: Service, service: Callable[..., Service], valkey: RedisServer
) -> None:
    threaded(running.stop)
    page.wait_for_selector("#state.bad")
    threaded(lambda: service(valkey.url, workers=2, port=running.port))
    eventually(page, lambda: page.inner_text("#state") == "live")
    assert page.query_selector("body.stale") is None


@pytest.mark.parametrize(
    "context",
    [
        {"viewport": {"width": 360, "height": 640}, "color_scheme": "dark", "reduced_motion": "reduce"},
        {"viewport": {"width": 1200, "height": 800}, "color_scheme": "light"},
    ],
    ids=["phone, dark, still", "desktop, light"],
)
def test_it_fits_and_can_be_read(browser: Any, running: Service, errors: list[str], context: dict[str, Any]) -> None:
    for page in opened(browser, running, errors, **context):
        claim(running, 120)
        page.wait_for_selector("li.halted")
        assert page.evaluate("document.documentElement.scrollWidth") == context["viewport"]["width"]
        still = context.get("reduced_motion") == "reduce"
        duration = page.evaluate("getComputedStyle(document.querySelector('.bar div')).transitionDuration")
        assert (duration == "0s") == still
        for selector in ("h1", ".number", ".number small", ".rates", ".badge", "footer p:last-child", "#top"):
            assert contrast(page, selector) >= 4.5, selector
    assert not errors


def contrast(page: Any, selector: str) -> float:
    """The ratio of a text's luminance to its background's, as WCAG 2.2 defines it."""
    ratio: float = page.evaluate(
        """(selector) => {
          const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
          const luminance = (color) => {
            const [r, g, b] = numbers(color).map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
            return .2126 * r + .7152 * g + .0722 * b;
          };
          const text = document.querySelector(selector);
          let behind = text;
          while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
          const [low, high] = [getComputedStyle(text).color, getComputedStyle(behind).backgroundColor]
            .map(luminance).sort((a, b) => a - b);
          return (high + .05) / (low + .05);
        }""",
        selector,
    )
    return ratio
