"""The dashboard in a real browser: no errors, nothing from elsewhere, readable, and usable by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import browser
from dashboard_data import fill
from http_door import open_http
from playwright.sync_api import Browser, ConsoleMessage, Page, expect
from servers import Running
from staddle.v1 import service_pb2 as sv
from staddle_server.api.http.pages.table import PAGES
from thin import back_up

WIDTHS = (390, 800, 1440)
QUERIES = {
    "/dataset": [
        "?name=orders-db",
        "?name=%3Cb%3Eodd%3C%2Fb%3E%20%26%20%22name%22%20%27quoted%27",
        "?name=git",
    ],
    "/browse": ["?dataset=orders-db", "?dataset=orders-db&path=dir0", "?dataset=orders-db&path=none"],
    "/file": ["?dataset=orders-db&path=readme.md&versions=1", "?dataset=orders-db&path=dir0/picture.png"],
    "/search": [
        "?dataset=orders-db",
        "?dataset=orders-db&name=.TXT",
        "?dataset=orders-db&path=dir0&name=*.png",
        "?dataset=orders-db&name=zzz",
    ],
    "/compare": ["?dataset=orders-db", "?dataset=logs"],
    "/runs": ["", "?outcome=failed"],
    "/datasets": ["", "?state=troubled", "?named=zzz"],
}
"""What addresses have besides their path; "" if not listed."""
WAIT_MS = 60_000
pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(600)]


def addresses() -> list[str]:
    return [
        page.path + query for page in PAGES if page.verb == "GET" for query in QUERIES.get(page.path, [""])
    ]


class Watched:
    """A page of a browser in which nothing may go wrong."""

    def __init__(self, opened: Browser, port: int, scheme: str = "light", *, scripts: bool = True) -> None:
        self.context = opened.new_context(color_scheme=scheme, java_script_enabled=scripts)
        self.context.set_default_timeout(WAIT_MS)
        self.page: Page = self.context.new_page()
        self.address = f"http://127.0.0.1:{port}"
        self.wrong: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("request", lambda request: self._check(request.url))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.wrong.append(f"{message.type}: {message.text}")

    def _check(self, url: str) -> None:
        if not url.startswith(self.address):
            self.wrong.append(f"asked {urlsplit(url).netloc or url}")

    def visit(self, path: str) -> None:
        self.page.goto(self.address + path)

    def log_in(self, token: str) -> None:
        self.visit("/")
        self.page.fill("#token", token)
        self.page.press("#token", "Enter")
        self.page.wait_for_selector("nav")

    def close(self) -> None:
        self.context.close()
        assert self.wrong == []


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, int]]:
    running = Running(tmp_path_factory.mktemp("dashboard"))
    fill(running)
    yield running, open_http(running)
    running.stop()


@pytest.mark.parametrize(
    ("scheme", "axe_widths"),
    [
        ("light", (390,)),
        pytest.param("light", (1440,), marks=pytest.mark.slow),
        pytest.param("dark", (800,), marks=pytest.mark.slow),
    ],
)
def test_every_page_is_accessible_and_fits_at_every_width(
    opened: Browser, filled: tuple[Running, int], scheme: str, axe_widths: tuple[int, ...]
) -> None:
    running, port = filled
    watched = Watched(opened, port, scheme)
    axe = Axe()
    watched.visit("/login")
    assert axe.run(watched.page).response["violations"] == []
    watched.log_in(running.token("admin"))
    found = []
    for path in addresses():
        watched.visit(path)
        for width in WIDTHS:
            watched.page.set_viewport_size({"width": width, "height": 900})
            # What is closed is looked at, too.
            watched.page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
            if watched.page.evaluate("document.documentElement.scrollWidth") > width:
                found.append(f"{path} at {width}: it scrolls sideways")
            if width not in axe_widths:
                continue
            for each in axe.run(watched.page).response["violations"]:
                where = [node["html"][:160] for node in each["nodes"][:3]]
                found.append(f"{path} at {width}: {each['id']}: {where}")
    assert found == []
    watched.close()


def test_a_keyboard_is_enough_to_log_in_and_to_reach_the_content(
    opened: Browser, filled: tuple[Running, int]
) -> None:
    running, port = filled
    watched = Watched(opened, port)
    watched.visit("/datasets")
    page = watched.page
    expect(page.locator("#token")).to_be_focused()
    page.keyboard.type(running.token("reader"))
    page.keyboard.press("Enter")
    page.wait_for_url("**/datasets")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#named")).to_be_focused()
    page.keyboard.type("orders")
    page.keyboard.press("Enter")
    page.wait_for_url("**/datasets?named=orders&state=all")
    page.select_option("#state", "unexpected")
    page.wait_for_url("**/datasets?named=orders&state=unexpected")
    page.go_back()
    page.locator("tbody a").focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("orders-db")
    watched.close()


def test_pages_work_without_scripts(opened: Browser, filled: tuple[Running, int]) -> None:
    running, port = filled
    watched = Watched(opened, port, scripts=False)
    watched.log_in(running.token("admin"))
    watched.visit("/browse?dataset=orders-db&path=dir0")
    page = watched.page
    expect(page.locator("#when")).to_be_hidden()
    page.select_option("#backup", index=59)
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#looked")).to_contain_text("number 1 ")
    expect(page.locator("h1")).to_have_text("dir0")
    watched.visit("/dataset?name=orders-db")
    page.locator("summary").first.click()
    assert page.locator("#table-new tbody tr").count() == 60
    expect(page.locator("#table-new tbody tr").first).to_be_visible()
    expect(page.locator("button.copy").first).to_be_hidden()
    page.get_by_role("link", name="Work out what that frees").click()
    expect(page.locator("#freed")).to_contain_text("Once collected, that frees")
    watched.close()


def test_a_slider_moves_through_time_and_keeps_the_path(opened: Browser, filled: tuple[Running, int]) -> None:
    running, port = filled
    watched = Watched(opened, port)
    watched.log_in(running.token("reader"))
    watched.visit("/browse?dataset=orders-db&path=dir0")
    page, slider = watched.page, watched.page.locator("#when")
    first, last = page.locator(".ends span").all_inner_texts()
    expect(page.locator(".slider output")).to_have_text(last)
    expect(page.get_by_role("button", name="Show")).to_be_hidden()
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_url("**/browse?dataset=orders-db&path=dir0&backup=*")
    expect(page.locator("#looked")).to_contain_text("number 1 ")
    expect(page.locator(".slider output")).to_have_text(first)
    expect(slider).to_have_attribute("aria-valuetext", f"{first}, number 1")
    expect(slider).to_be_focused()
    expect(page.locator("h1")).to_have_text("dir0")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#looked")).to_contain_text("number 2 ")
    # The rest of the page, and where it leads, is of that backup.
    page.get_by_role("link", name="top").click()
    expect(page.locator("#looked")).to_contain_text("number 2 ")
    expect(slider).to_have_value("1")
    page.go_back()
    expect(page.locator("h1")).to_have_text("dir0")
    expect(slider).to_have_value("1")
    page.go_back()
    expect(page.locator("#looked")).to_contain_text("number 1 ")
    expect(slider).to_have_value("0")
    # The list beside it moves it.
    page.select_option("#backup", index=0)
    expect(page.locator("#looked")).to_contain_text("number 60 ")
    expect(slider).to_have_value("59")
    watched.close()


def test_a_slider_that_gets_no_answer_shows_the_page_that_says_why(opened: Browser, running: Running) -> None:
    for number in range(2):
        made = back_up(running.stub(), "one", {"a": b"%d" % number})
    watched = Watched(opened, open_http(running))
    watched.log_in(running.token("admin"))
    watched.visit("/browse?dataset=one")
    running.stub().DeleteBackup(sv.DeleteBackupRequest(dataset="one", backup=made.id))
    watched.page.locator("#when").focus()
    watched.page.keyboard.press("Home")
    expect(watched.page.locator("#looked")).to_contain_text("number 1 ")
    watched.page.keyboard.press("End")
    expect(watched.page.locator("h1")).to_have_text("Not Found")
    # The browser and htmx report the answer 404.
    assert all("404" in each for each in watched.wrong), watched.wrong
    watched.context.close()


def test_a_plot_is_drawn_from_the_table_behind_it(opened: Browser, filled: tuple[Running, int]) -> None:
    running, port = filled
    watched = Watched(opened, port)
    watched.log_in(running.token("reader"))
    watched.visit("/dataset?name=orders-db")
    expect(watched.page.locator(".plot canvas")).to_have_count(5)
    drawn = "(canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((v) => v)"
    assert watched.page.locator(".plot canvas").first.evaluate(drawn)
    watched.visit("/dataset?name=git")
    watched.close()


def test_the_first_page_follows_what_happens_and_keeps_still_under_a_reader(
    opened: Browser, running: Running
) -> None:
    back_up(running.stub(), "one", {"a": b"1"})
    watched = Watched(opened, open_http(running))
    watched.page.clock.install()
    watched.log_in(running.token("admin"))
    page = watched.page
    expect(page.locator("h1")).to_contain_text("Nothing needs you")
    running.stub().ReportRun(sv.ReportRunRequest(dataset="one", reason="no route to host"))
    page.clock.run_for(11_000)
    expect(page.locator("h1")).to_contain_text("1 of 1 dataset needs you.")
    expect(page).to_have_title("1 of 1 dataset needs you. · Staddle")
    expect(page.locator(".error-text")).to_have_text("no route to host")
    # A reader who is at a button, or has selected something, loses neither.
    page.locator("button.copy").first.focus()
    back_up(running.stub(), "one", {"a": b"2"})
    page.clock.run_for(31_000)
    expect(page.locator("button.copy").first).to_be_focused()
    page.locator("main").focus()
    page.clock.run_for(11_000)
    expect(page.locator("h1")).to_contain_text("Nothing needs you")
    watched.close()


def test_a_page_that_cannot_be_brought_up_to_date_says_so_and_an_ended_session_asks_who_it_is(
    opened: Browser, running: Running
) -> None:
    port = open_http(running)
    watched = Watched(opened, port)
    watched.page.clock.install()
    watched.log_in(running.token("reader", name="gone"))
    watched.page.route("**/*", lambda route: route.abort())
    watched.page.clock.run_for(11_000)
    expect(watched.page.locator("#stale")).to_be_visible()
    watched.page.unroute("**/*")
    watched.page.clock.run_for(11_000)
    expect(watched.page.locator("#stale")).to_be_hidden()
    running.catalog.tokens.revoke(running.tenant, "gone", running.clock.now_ns())
    watched.page.clock.run_for(11_000)
    expect(watched.page.locator("#token")).to_be_visible()
    # The browser and htmx report the request that was cut off, and the answer 401.
    assert all("Failed to load" in each or "htmx:" in each for each in watched.wrong), watched.wrong
    watched.context.close()
