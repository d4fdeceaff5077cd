"""The live page in a browser: what moves, what is said of it, how it is found among hundreds, and that it fits."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from loadtests.rig.clients import Client, hammer
from loadtests.rig.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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
    return threaded(lambda: service(empty_valkey.url, workers=2, limit=100, admin_token="t", wait_for="/readyz"))


@pytest.fixture
def errors() -> list[str]:
    """What the browser complained of: errors of the script, violations of the policy."""
    return []


@pytest.fixture
def page(browser: Any, running: Service, errors: list[str]) -> Iterator[Any]:
    with opened(browser, running, errors) as page:
        yield page


@contextmanager
def opened(browser: Any, running: Service, errors: list[str], query: str = "", **context: Any) -> Iterator[Any]:
    with browser.new_context(**context) as each:
        page = each.new_page()
        page.set_default_timeout(MILLISECONDS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{running.url}/watch{query}")
        eventually(page, lambda: page.inner_text("#state") == "live")
        yield page


def claim(running: Service, claims: int, counter: str = "default", n: int = 1) -> None:
    threaded(lambda: asyncio.run(hammer(running.port, 4, [n] * claims, f"/counters/{counter}")))


def put(running: Service, limits: Mapping[str, int]) -> None:
    async def act() -> None:
        client = Client(running.port)
        for name, limit in limits.items():
            body = json.dumps({"limit": limit}).encode()
            assert (await client.request(f"/counters/{name}", "PUT", body, Authorization="Bearer t"))[0] in (200, 201)
        client.close()

    threaded(lambda: asyncio.run(act()))


def lose(running: Service, store: RedisServer, name: str) -> None:
    """Have a claim, take from the store what it has counted, and let the worker that has seen it notice."""

    def act() -> None:
        assert running.get(f"/counters/{name}", "POST")[0] == 200
        store.command("DEL", f"pythonricing:{{{name}}}")
        wait_until(lambda: running.get(f"/counters/{name}", "POST")[0] == 503, "the loss to be noticed")

    threaded(act)


def eventually(page: Any, condition: Callable[[], bool]) -> None:
    """Playwright's own waiting for a function needs eval, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, page.inner_text("body")
        page.wait_for_timeout(100)


def width(page: Any) -> float:
    share: float = page.evaluate("parseFloat(document.querySelector('#counters .bar div').style.width)")
    return share


def names(page: Any) -> list[str]:
    found: list[str] = page.eval_on_selector_all("li a", "(all) => all.map((each) => each.textContent)")
    return found


def said(page: Any) -> str:
    """What a screen reader has said of the counters in the last half minute."""
    return str(page.text_content("#said"))


def test_the_bar_moves_until_it_is_halted(page: Any, running: Service, errors: list[str]) -> None:
    assert names(page) == ["default"]
    assert (width(page), page.inner_text("li .badge")) == (0, "open")
    claim(running, 40)
    eventually(page, lambda: page.inner_text("li .number") == "40 of 100")
    assert width(page) == 40
    claim(running, 100)
    page.wait_for_selector("li.halted")
    assert (width(page), page.inner_text("li .badge")) == (100, "HALTED")
    assert page.get_by_role("meter").get_attribute("aria-valuetext") == "100 of 100, halted"
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
    eventually(page, lambda: [each.inner_text() for each in page.query_selector_all("li .badge")] == ["HALTED", "open"])
    assert names(page) == ["a.new-one", "default"]
    threaded(lambda: running.get("/counters/a.new-one", "DELETE", **token))
    eventually(page, lambda: names(page) == ["default"])
    assert not errors


def test_it_connects_again_by_itself_and_says_both(
    page: Any, running: Service, service: Callable[..., Service], valkey: RedisServer
) -> None:
    assert page.get_attribute("#state", "role") == "status"
    threaded(running.stop)
    page.wait_for_selector("#state.bad")
    assert page.inner_text("#state") == "no connection, trying again …"
    check_accessibility(page)
    threaded(lambda: service(valkey.url, workers=2, port=running.port))
    eventually(page, lambda: page.inner_text("#state") == "live")
    assert page.query_selector("body.stale") is None


def test_the_last_five_minutes_are_there_at_once_and_their_values_under_the_pointer(
    browser: Any, running: Service, errors: list[str]
) -> None:
    claim(running, 300)
    with opened(browser, running, errors) as page:
        box = page.locator(".plot").bounding_box()
        second = box["width"] / 300

        def under(back: int) -> tuple[int, int]:
            """What the pointer is told of the second that was so many before the present one."""
            page.mouse.move(box["x"] + box["width"] - (back - 0.5) * second, box["y"] + 30)
            text = page.inner_text("#at")
            found = re.fullmatch(r"\d+:\d+:\d+(?: [AP]M)?: ([\d,]+) admitted, ([\d,]+) refused", text)
            assert found, text
            return int(found[1].replace(",", "")), int(found[2].replace(",", ""))

        eventually(page, lambda: sum(admitted + refused for admitted, refused in map(under, range(1, 60))) == 300)
        page.mouse.move(0, 0)
        assert page.is_hidden("#at")
        # The same by keyboard.
        plot = page.get_by_role("slider")
        plot.focus()
        page.keyboard.press("Home")
        assert plot.get_attribute("aria-valuenow") == "-300"
        page.keyboard.press("ArrowRight")
        assert plot.get_attribute("aria-valuenow") == "-299"
        assert plot.get_attribute("aria-valuetext") == page.inner_text("#at")
        assert re.match("M0.5 ", page.get_attribute("#chart .admitted", "d"))
    assert not errors


def test_admitted_and_refused_are_claims_whatever_their_size(page: Any, running: Service) -> None:
    """Ten claims of ten numbers are ten in the chart, and one of the refused is one."""
    claim(running, 11, n=10)
    drawn = "[...seconds.values()].reduce((sum, each) => [sum[0] + each[0], sum[1] + each[1]], [0, 0])"
    eventually(page, lambda: page.evaluate(drawn) == [10, 1])


def test_server_and_store_are_named_without_a_password(page: Any, running: Service, valkey: RedisServer) -> None:
    assert re.fullmatch(rf"server \S+, store {re.escape(valkey.url)}", page.inner_text("#where"))


def test_the_title_says_what_is_halted_or_lost(page: Any, running: Service, valkey: RedisServer) -> None:
    assert page.title() == "pythonricing"
    put(running, {"few": 2, "some": 5})
    claim(running, 3, "few")
    eventually(page, lambda: page.title() == "1 halted · pythonricing")
    lose(running, valkey, "some")
    eventually(page, lambda: page.title() == "1 lost, 1 halted · pythonricing")


def test_every_change_of_state_is_said_wherever_its_counter_stands(
    page: Any, running: Service, valkey: RedisServer
) -> None:
    put(running, {f"counter-{number:03}": 5 for number in range(300)})
    eventually(page, lambda: page.inner_text("#shown") == "301 counters")
    page.select_option("#order", "name")
    assert page.get_attribute("#said", "role") == "status"
    claim(running, 5, "counter-250")
    eventually(page, lambda: "halted: counter-250" in said(page))
    lose(running, valkey, "counter-299")
    eventually(page, lambda: "state lost: counter-299" in said(page))
    put(running, {"counter-250": 9})
    eventually(page, lambda: "open: counter-250" in said(page))
    page.fill("#filter", "nothing is called so")
    claim(running, 5, "counter-001")
    eventually(page, lambda: "halted: counter-001" in said(page))


def test_hundreds_are_filtered_ordered_and_kept_in_the_address(
    page: Any, running: Service, valkey: RedisServer, errors: list[str]
) -> None:
    put(running, {f"coupon-{number:03}": 10 + number for number in range(510)} | {"zz-last": 3})
    eventually(page, lambda: page.inner_text("#shown") == "500 of 512 counters")
    assert page.locator("li").count() == 500
    claim(running, 20, "coupon-509")
    eventually(page, lambda: names(page)[0] == "coupon-509")  # the busiest
    claim(running, 3, "zz-last")
    eventually(page, lambda: names(page)[0] == "zz-last")  # what is halted stands before
    lose(running, valkey, "coupon-508")
    eventually(page, lambda: names(page)[:2] == ["coupon-508", "zz-last"])  # and what is lost before that

    page.select_option("#order", "name")
    eventually(page, lambda: names(page)[0] == "coupon-000")
    assert {"coupon-508", "zz-last"} <= set(names(page))
    page.fill("#filter", "ON-50")
    eventually(page, lambda: page.inner_text("#shown") == "10 of 512 counters")
    assert names(page) == [f"coupon-50{digit}" for digit in range(10)]
    assert page.inner_text("#attention") == " · 1 lost · 1 halted, some of them filtered out"
    assert page.url.endswith("/watch?filter=ON-50&order=name")
    page.reload()
    eventually(page, lambda: names(page) == [f"coupon-50{digit}" for digit in range(10)])
    assert (page.input_value("#filter"), page.input_value("#order")) == ("ON-50", "name")
    assert not errors


def test_nothing_lost_or_halted_is_left_out_however_many_there_are(page: Any, running: Service) -> None:
    put(running, {f"sold-{number:03}": 0 for number in range(505)} | {f"a-{number}": 5 for number in range(20)})
    eventually(page, lambda: page.inner_text("#shown") == "505 of 526 counters")
    assert page.locator("li.halted").count() == 505


def test_rows_keep_their_places_under_the_pointer(page: Any, running: Service) -> None:
    put(running, {"a": 1000, "b": 1000})
    eventually(page, lambda: names(page) == ["a", "b", "default"])
    page.hover("li >> nth=0")
    claim(running, 100, "b")
    eventually(page, lambda: "100 of 1,000" in page.inner_text("#counters"))
    assert names(page) == ["a", "b", "default"]
    page.mouse.move(0, 0)
    claim(running, 100, "b")
    eventually(page, lambda: names(page)[0] == "b")


def test_a_counter_has_a_view_of_its_own(browser: Any, page: Any, running: Service, errors: list[str]) -> None:
    put(running, {"seats": 1_000_000})
    page.click("li a >> text=seats")
    assert page.url.endswith("?counter=seats")
    assert page.is_hidden("#all")
    assert page.inner_text("#one h2") == "seats"
    assert page.evaluate("document.activeElement.id") == "one"
    eventually(page, lambda: "Nobody takes numbers now." in page.inner_text("#one"))
    claim(running, 50, "seats", n=10)
    eventually(page, lambda: page.inner_text("#one .number") == "500")
    assert page.inner_text("#one .limit") == "of 1,000,000 · 999,500\u00a0left"
    assert re.search(r"[1-9][\d.,]*\u00a0numbers/s", page.inner_text("#one .rates"))
    assert re.fullmatch(r"Sold out in \S+ (min|h|days?|years?)( \S+ \w+)? at this rate\.", page.inner_text("#one .end"))
    page.click("#full")
    eventually(
        page, lambda: bool(page.evaluate("document.fullscreenElement && document.fullscreenElement.id === 'one'"))
    )
    page.evaluate("document.exitFullscreen()")

    claim(running, 1, "seats", n=999_500)
    eventually(page, lambda: page.inner_text("#one .end") == "Sold out.")
    assert page.title() == "seats halted · pythonricing"
    page.click("#back")
    eventually(page, lambda: "seats" in names(page))
    page.go_back()
    assert page.inner_text("#one h2") == "seats"
    threaded(lambda: running.get("/counters/seats", "DELETE", Authorization="Bearer t"))
    eventually(page, lambda: "There is no such counter." in page.inner_text("#one"))
    with opened(browser, running, errors, "?counter=default") as again:
        eventually(again, lambda: again.inner_text("#one .number") == "0")
    assert not errors


@pytest.mark.parametrize("width", [320, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_held_is_a_lighter_part_of_the_bar_and_a_renewal_is_counted_down(
    browser: Any, running: Service, errors: list[str], width: int, scheme: str
) -> None:
    def ask(path: str, method: str = "POST", body: bytes = b"") -> Any:
        status, told = threaded(lambda: running.get(f"/counters/{path}", method, body, Authorization="Bearer t"))
        assert status in (200, 201)
        return told

    ask("seats", "PUT", b'{"limit": 100}')
    ask("quota", "PUT", b'{"limit": 100, "every": "day", "zone": "Europe/Berlin"}')
    for name in ("seats", "quota"):
        ask(f"{name}?n=20")
        held = ask(f"{name}?n=30&hold=600")["hold"]
    context: dict[str, Any] = {"viewport": {"width": width, "height": 640}, "color_scheme": scheme}
    with opened(browser, running, errors, "?order=name", **context) as page:
        bar = page.locator("li .bar").nth(1)  # after default
        eventually(page, lambda: bar.get_attribute("aria-valuenow") == "50")
        sold, lighter = bar.locator("div").all()
        assert [part.evaluate("(part) => part.style.width") for part in (sold, lighter)] == ["20%", "30%"]
        colours = [part.evaluate("(part) => getComputedStyle(part).backgroundColor") for part in (sold, lighter)]
        assert colours[0] != colours[1]
        rates = page.locator("li .rates").nth(1).inner_text()
        assert re.match(r"50\xa0left, 30\xa0held, renews in\xa0\d+\xa0(h|min|s)", rates)
        assert str(bar.get_attribute("aria-valuetext")).startswith("50 of 100, open, 30\xa0held, renews in\xa0")
        assert "·" not in rates  # which would dangle where lines break
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(OUTSIDE) == []
        check_accessibility(page)
        ask(f"quota/holds/{held}?n=10")
        eventually(page, lambda: bar.get_attribute("aria-valuenow") == "30")
        assert "held" not in page.locator("li .rates").nth(1).inner_text()
    with opened(browser, running, errors, "?counter=seats", **context) as page:
        assert "30\xa0held" in page.inner_text("#one .limit")
        ask("seats?n=50&hold=600")
        eventually(page, lambda: page.inner_text("#one .end") == "Sold out for now: what is held may come back.")
    ask("quota?n=70")
    with opened(browser, running, errors, "?counter=quota", **context) as page:
        eventually(page, lambda: page.inner_text("#one .end").startswith("Sold out for now: it renews in "))
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert not errors


HIDE = """
let hidden = false;
Object.defineProperty(document, "hidden", {get: () => hidden});
window.hide = (now) => { hidden = now; document.dispatchEvent(new Event("visibilitychange")); };
"""


def test_seven_tabs_of_one_browser_work(browser: Any, running: Service, errors: list[str]) -> None:
    """A browser opens six connections to a server. Headless, no tab is hidden by itself: each is told that it is."""
    with browser.new_context() as context:
        tabs: list[Any] = []
        for _ in range(7):
            tab = context.new_page()
            tab.add_init_script(HIDE)
            tab.set_default_timeout(MILLISECONDS)
            for other in tabs[-1:]:
                other.evaluate("hide(true)")
                assert other.evaluate("source") is None
            tab.goto(f"{running.url}/watch")
            eventually(tab, lambda tab=tab: tab.inner_text("#state") == "live")  # type: ignore[misc]
            tabs.append(tab)
        first, last = tabs[0], tabs[-1]
        asked = "(path, method) => fetch(path, {method}).then((answer) => answer.status)"
        assert last.evaluate(f"({asked})('/counters/default', 'POST')") == 200
        assert last.evaluate(f"({asked})('/livez')") == 200
        assert last.evaluate(f"({asked})('/watch')") == 200
        assert first.evaluate("source") is None
        claim(running, 120)
        last.evaluate("hide(true)")
        first.evaluate("hide(false)")
        eventually(first, lambda: first.inner_text("li .badge") == "HALTED")
        # Those in the background look from time to time, for their titles.
        eventually(last, lambda: last.title() == "1 halted · pythonricing")
    assert not errors


LARGEST = "the-largest_counter.that-there-can-be_with.64-characters-in-it.1"


#: What is cut off by the window's edge, or by the edge of its row.
OUTSIDE = """
const right = (each) => each.getBoundingClientRect().right;
[...document.querySelectorAll("main *")].filter((each) => right(each) > innerWidth
    || each.matches("li *, #one > *") && right(each) > right(each.parentElement) + 1
    || each.matches("#one .number") && each.scrollWidth > each.clientWidth).map((each) => each.outerHTML);
"""


@pytest.mark.parametrize("counters", [4, 500])
@pytest.mark.parametrize(
    "context",
    [
        {"viewport": {"width": 320, "height": 640}, "color_scheme": "dark", "reduced_motion": "reduce"},
        {"viewport": {"width": 320, "height": 640}, "color_scheme": "light"},
        {"viewport": {"width": 1400, "height": 900}, "color_scheme": "light"},
        {"viewport": {"width": 1400, "height": 900}, "color_scheme": "dark", "reduced_motion": "reduce"},
    ],
    ids=["phone, dark, still", "phone, light", "desktop, light", "desktop, dark, still"],
)
def test_it_fits_and_can_be_read(
    browser: Any, running: Service, valkey: RedisServer, errors: list[str], counters: int, context: dict[str, Any]
) -> None:
    put(running, {LARGEST: 2**53 - 1, "lost": 10} | {f"coupon-{number:03}": 1000 for number in range(counters - 3)})
    claim(running, 1, LARGEST, n=2**53 - 2)
    lose(running, valkey, "lost")
    claim(running, 120)
    for query in ("", f"?counter={LARGEST}", "?counter=default", "?counter=lost", "?counter=none"):
        with opened(browser, running, errors, query, **context) as page:
            if not query:
                page.wait_for_selector("li.lost")
                page.wait_for_selector("li.halted")
            assert page.evaluate("document.documentElement.scrollWidth") == context["viewport"]["width"]
            assert page.evaluate(OUTSIDE) == []
            still = context.get("reduced_motion") == "reduce"
            duration = page.evaluate("getComputedStyle(document.querySelector('#one .bar div')).transitionDuration")
            assert (duration == "0s") == still
            if not query:
                for selector in ("h1", ".number", ".number small", ".rates", ".badge", "footer p:last-child", "#top"):
                    assert contrast(page, f"{selector} >> visible=true") >= 4.5, selector
            check_accessibility(page)
    assert not errors


def check_accessibility(page: Any) -> None:
    """axe-core finds no violation."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def contrast(page: Any, selector: str) -> float:
    """The ratio of a text's luminance to its background's, as WCAG 2.2 defines it."""
    ratio: float = page.locator(selector).first.evaluate(
        """(text) => {
          const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
          const luminance = (color) => {
            const [r, g, b] = numbers(color).map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
            return .2126 * r + .7152 * g + .0722 * b;
          };
          let behind = text;
          while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
          const [low, high] = [getComputedStyle(text).color, getComputedStyle(behind).backgroundColor]
            .map(luminance).sort((a, b) => a - b);
          return (high + .05) / (low + .05);
        }""",
    )
    return ratio


def test_many_counters_that_renew_have_a_line_each(browser: Any, running: Service, errors: list[str]) -> None:
    def fill() -> None:
        for number in range(12):
            body = b'{"limit": 10000, "every": "month", "zone": "Europe/Berlin"}'
            running.get(f"/counters/a-sale-of-name-{number}", "PUT", body, Authorization="Bearer t")
            running.get(f"/counters/a-sale-of-name-{number}?n=1000&hold=600", "POST")

    threaded(fill)
    with opened(browser, running, errors, "?order=name", viewport={"width": 1400, "height": 900}) as page:
        eventually(page, lambda: page.locator(".compact li").count() == 13)
        eventually(page, lambda: all("renews" in told for told in page.locator("li .rates").all_inner_texts()[:12]))
        heights = page.evaluate("[...document.querySelectorAll('li .rates')].map((part) => part.clientHeight)")
        assert max(heights) < 30, heights
    assert not errors
