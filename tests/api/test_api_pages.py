"""The dashboard's frame: logging in, sessions, forms, headers, and what is vendored."""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import time
from pathlib import Path

import pytest
import staddle_server.api.http.pages as package
from http_door import answer_of, ask, open_http
from pages_client import Visitor, check_headers, field_of, text_of
from servers import Running
from staddle.v1 import service_pb2 as sv
from staddle_server.api.http.pages.attempts import ATTEMPT_EVERY_S, ATTEMPTS_MAX, Attempts
from staddle_server.api.http.pages.static_files import DIRECTORY
from staddle_server.api.http.pages.table import PAGES
from staddle_server.base.errors import Exhausted, Unavailable
from staddle_server.base.limits import FORM_BYTES_MAX, SESSION_S
from staddle_server.base.logs import CALLS
from staddle_server.base.types import TokenRole
from thin import back_up

VENDORED = {
    "htmx-2.0.11.min.js": "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717",
    "htmx.LICENSE": "d3d2456f76414f2456104660ebd65aff1c04cd7966b942bdabd63f3cdb316a38",
    "uplot-1.6.32.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uplot-1.6.32.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uplot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""What was published, by its SHA-256: nobody edits these files."""
OURS = {"icon.svg", "pages.css", "pages.js"}


@pytest.fixture
def port(running: Running) -> int:
    return open_http(running)


# --- logging in


def test_a_token_logs_in_and_the_page_that_was_wanted_follows(running: Running, port: int) -> None:
    visitor = Visitor(port)
    asked = visitor.get("/?x=1")
    assert (asked.status, asked.headers["location"]) == (303, "/login?next=%2F%3Fx%3D1")
    page = visitor.page(asked.headers["location"])
    assert field_of(page, "next") == "/?x=1"
    done = visitor.log_in(running.token("reader"), "/?x=1")
    assert (done.status, done.headers["location"]) == (303, "/?x=1")
    assert "Nothing is backed up yet." in text_of(visitor.page("/"))


@pytest.mark.parametrize(
    "wanted", ["//evil.example/", "https://evil.example", "/\\evil", "evil", "/a\nb", ""]
)
def test_a_login_leads_to_no_other_site(running: Running, port: int, wanted: str) -> None:
    assert Visitor(port).log_in(running.token("reader"), wanted).headers["location"] == "/"


def test_a_token_that_is_wrong_revoked_or_for_metrics_does_not_log_in(running: Running, port: int) -> None:
    visitor = Visitor(port)
    revoked = running.token("reader", name="old")
    running.catalog.tokens.revoke(running.tenant, "old", time.time_ns())
    for token in ("", "staddle_wrong", "x" * 5000, "ö", revoked):
        answer = visitor.log_in(token)
        assert (answer.status, "not a valid token" in answer.body.decode()) == (401, True)
    answer = visitor.log_in(running.token("monitor"))
    assert (answer.status, "reads metrics, and no pages" in answer.body.decode()) == (403, True)
    assert not any("session" in name for name in visitor.cookies)


def test_the_log_says_that_a_log_in_failed(
    running: Running, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, CALLS)
    visitor = Visitor(port)
    visitor.log_in("staddle_wrong")
    visitor.log_in(running.token("monitor"))
    visitor.log_in(running.token("reader"))
    found = [record.__dict__["fields"]["outcome"] for record in caplog.records if record.name == CALLS]
    assert found == ["UNAUTHENTICATED", "PERMISSION_DENIED", "OK"]


def test_the_text_of_a_token_is_in_no_cookie_and_no_page(running: Running, port: int) -> None:
    token = running.token("admin")
    visitor = Visitor(port, token)
    assert token not in str(visitor.cookies)
    for page in PAGES:
        assert token not in visitor.get(page.path).body.decode()


def test_a_login_form_counts_only_with_the_cookie_of_its_page(running: Running, port: int) -> None:
    token = running.token("reader")
    elsewhere, visitor = Visitor(port), Visitor(port)
    key = field_of(elsewhere.page("/login"), "key")
    assert visitor.post("/login", {"key": key, "token": token}).status == 403
    assert visitor.post("/login", {"key": "", "token": token}).status == 403
    visitor.page("/login")
    assert visitor.post("/login", {"key": key, "token": token}).status == 403


def test_attempts_to_log_in_are_limited_and_sessions_go_on(running: Running, port: int) -> None:
    inside, visitor = Visitor(port, running.token("reader")), Visitor(port)
    answers = [visitor.log_in("staddle_wrong") for _ in range(ATTEMPTS_MAX)]
    assert [answer.status for answer in answers] == [401] * (ATTEMPTS_MAX - 1) + [429]
    assert visitor.log_in(running.token("reader")).status == 429
    assert inside.get("/").status == 200


def test_attempts_are_free_again_with_time_and_of_each_address() -> None:
    now = [0.0]
    waits: list[float] = []
    attempts = Attempts(lambda: now[0])

    def refused(address: str) -> bool:
        try:
            attempts.count(address)
        except Exhausted as error:
            waits.append(error.retry_after_s or 0.0)
            return True
        return False

    assert [refused("a") for _ in range(ATTEMPTS_MAX + 2)] == [False] * ATTEMPTS_MAX + [True] * 2
    assert not refused("b")
    now[0] += ATTEMPT_EVERY_S
    assert [refused("a"), refused("a")] == [False, True]
    now[0] += ATTEMPT_EVERY_S * ATTEMPTS_MAX * 5
    assert [refused("a") for _ in range(ATTEMPTS_MAX + 1)] == [False] * ATTEMPTS_MAX + [True]
    assert all(0 < wait_s <= ATTEMPT_EVERY_S for wait_s in waits)


# --- sessions


def test_a_session_ends_with_its_token(running: Running, port: int) -> None:
    visitor = Visitor(port, running.token("reader", name="soon"))
    assert visitor.get("/").status == 200
    running.catalog.tokens.revoke(running.tenant, "soon", time.time_ns())
    assert visitor.get("/").status == 303


def test_a_session_ends_with_the_time_of_its_token_and_after_twelve_hours(
    running: Running, port: int
) -> None:
    short = running.catalog.tokens.create(
        running.tenant, "short", TokenRole.READER, time.time_ns(), time.time_ns() + 60 * 10**9
    )
    brief, long = Visitor(port, short), Visitor(port, running.token("reader"))
    # The service believes its uptime rather than a clock that jumped: both move.
    pages = running.service._http._site._sessions  # type: ignore[union-attr]
    before = pages._now_ns
    pages._now_ns = lambda: before() + 61 * 10**9
    assert (brief.get("/").status, long.get("/").status) == (303, 200)
    pages._now_ns = lambda: before() + int((SESSION_S + 1) * 10**9)
    assert long.get("/").status == 303
    pages._now_ns = lambda: before() - int((SESSION_S + 1) * 10**9)
    assert long.get("/").status == 303  # it would end later than any that is made then


def test_another_server_of_the_catalog_takes_the_session_also_after_a_restart(
    running: Running, port: int
) -> None:
    visitor = Visitor(port, running.token("reader"))
    running.restart()
    visitor.port = open_http(running)
    assert visitor.get("/").status == 200


def test_no_changed_or_foreign_cookie_is_a_session(running: Running, port: int) -> None:
    visitor = Visitor(port, running.token("reader"))
    value = visitor.cookies["staddle-session"]
    tenant, _, sealed = value.partition(".")
    other = running.make_tenant("other")
    stub = running.stub()
    for name in ("one", "two"):
        back_up(stub, name, {"a": b"1"})
    page_token = stub.ListDatasets(sv.ListDatasetsRequest(page_size=1)).next_page_token
    assert page_token
    for forged in (
        "",
        ".",
        tenant,
        f"{other.hex()}.{sealed}",
        f"{'00' * 16}.{sealed}",
        f"zz.{sealed}",
        f"{tenant}.{sealed[:-1]}",
        f"{tenant}.{('B' if sealed[0] == 'A' else 'A') + sealed[1:]}",
        f"{tenant}.{page_token}",
        value + "A" * 600,
    ):
        visitor.cookies["staddle-session"] = forged
        assert visitor.get("/").status == 303, forged


def test_a_link_of_another_site_ends_no_session(running: Running, port: int) -> None:
    visitor = Visitor(port, running.token("reader"))
    without = ask(port, "/")  # SameSite=Strict: the browser sends no cookie
    assert (without.status, without.headers["set-cookie"]) == (303, None)
    visitor.cookies["staddle-session"] = "invalid"
    assert visitor.get("/").status == 303
    assert "staddle-session" not in visitor.cookies


def test_logging_out_needs_the_form_of_the_session_and_ends_it(running: Running, port: int) -> None:
    visitor = Visitor(port, running.token("reader"))
    other = Visitor(port, running.token("reader"))
    for key in ("", "x", other.form_key()):
        assert visitor.post("/logout", {"key": key}).status == 403
    assert visitor.get("/").status == 200
    assert visitor.post("/logout", {"key": visitor.form_key()}).status == 303
    assert visitor.get("/").status == 303


def test_logging_out_ends_copies_of_the_cookie_and_earlier_sessions_of_the_token(
    running: Running, port: int
) -> None:
    visitor, earlier = (Visitor(port, running.token("reader", name="shared")) for _ in range(2))
    stranger = Visitor(port, running.token("reader", name="stranger"))
    copy = Visitor(port)
    copy.cookies = dict(visitor.cookies)
    assert copy.get("/").status == 200
    assert visitor.post("/logout", {"key": visitor.form_key()}).status == 303
    assert [each.get("/").status for each in (copy, earlier, stranger)] == [303, 303, 200]
    again = Visitor(port, running.token("reader", name="shared"))
    assert again.get("/").status == 200


@pytest.mark.parametrize("ahead_s", [-50, 50])
def test_a_logout_at_a_server_with_another_clock_ends_what_was_and_nothing_else(
    running: Running, port: int, ahead_s: int
) -> None:
    sessions = running.service._http._site._sessions  # type: ignore[union-attr]
    own_ns, token = sessions._now_ns, running.token("reader", name="shared")
    here, earlier = Visitor(port, token), Visitor(port, token)
    sessions._now_ns = lambda: own_ns() + ahead_s * 10**9
    assert [each.get("/").status for each in (here, earlier)] == [200, 200]
    there = Visitor(port, token)
    assert there.post("/logout", {"key": there.form_key()}).status == 303
    sessions._now_ns = own_ns
    assert [each.get("/").status for each in (here, earlier)] == [303, 303]
    again = Visitor(port, token)
    assert again.get("/").status == 200
    sessions._now_ns = lambda: own_ns() + ahead_s * 10**9
    assert again.get("/").status == 200


def test_people_can_log_out_while_the_catalog_takes_no_writes(
    running: Running, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Unavailable("STORE_UNAVAILABLE", "the disk is full")

    visitor = Visitor(port, running.token("reader", name="leaves"))
    key = visitor.form_key()
    monkeypatch.setattr(running.catalog.tokens, "end_sessions", refuse)
    answer = visitor.post("/logout", {"key": key})
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    assert "staddle-session" not in visitor.cookies


def test_cookies_of_an_encrypted_connection_are_for_this_host_alone(running: Running, port: int) -> None:
    answer = ask(port, "/login", headers={"x-forwarded-proto": "https"})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-staddle-login=")
    assert "; Secure" in cookie
    assert "domain" not in cookie.lower()


def test_a_part_of_a_page_has_the_page_loaded_again_once_the_session_is_over(port: int) -> None:
    answer = Visitor(port).get("/", hx_request="true")
    assert (answer.status, answer.headers["hx-refresh"]) == (401, "true")


# --- forms and errors


def test_forms_that_are_none_are_refused(running: Running, port: int) -> None:
    visitor = Visitor(port, running.token("reader"))
    for body, kind in (
        (b"{}", "application/json"),
        (b"key=\xff", "application/x-www-form-urlencoded"),
        (b"key=" + b"x" * FORM_BYTES_MAX, "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % each for each in range(40)), "application/x-www-form-urlencoded"),
    ):
        answer = visitor._ask("/logout", body, {"content-type": kind})
        assert (answer.status, "<h1>Bad Request</h1>" in answer.body.decode()) == (400, True)
    assert visitor._ask("/logout", b"x" * (5 << 20), {"content-type": "text/plain"}).status == 400


def test_no_more_of_a_form_is_read_than_a_form_may_have(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(
            b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            b"Content-Length: 3000000\r\n\r\n" + b"x" * (FORM_BYTES_MAX + 100_000)
        )
        answer = answer_of(line)  # without the rest
    assert (answer.status, "The form is too long" in answer.body.decode()) == (400, True)


def test_an_error_is_a_page_with_the_reason(running: Running, port: int) -> None:
    visitor = Visitor(port, running.token("reader"))
    running.service._gate.close()
    answer = visitor.get("/")
    assert answer.status == 503
    assert "the server is shutting down" in text_of(answer.body.decode())
    assert answer.headers["retry-after"]


def test_pages_are_shown_by_role(running: Running, port: int) -> None:
    back_up(running.stub(), "one", {"a": b"1"})
    for role in (TokenRole.READER, TokenRole.WRITER, TokenRole.ADMIN):
        visitor = Visitor(port, running.token(role.name.lower()))
        for page in PAGES:
            if page.verb == "GET":
                status = visitor.get(f"{page.path}?name=one&dataset=one&path=a").status
                assert status in {200, 403}
                assert (status == 403) == (role < page.role), (page.path, role)
        shown = set(re.findall(r'<a href="(/[a-z]*)"', visitor.page("/").partition("</nav>")[0]))
        assert shown >= {page.here for page in PAGES if page.role <= role and page.path == page.here}
        assert not shown & {page.here for page in PAGES if page.role > role and page.path == page.here}


# --- files


def test_vendored_files_are_as_published_and_have_their_licences() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DIRECTORY.iterdir()}
    assert {name: found[name] for name in found.keys() - OURS} == VENDORED


def test_static_files_are_kept_by_browsers_and_change_their_address(port: int) -> None:
    page = Visitor(port).page("/login")
    paths = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert len(set(paths)) >= 4
    for path in paths:
        answer = ask(port, path, headers={"accept-encoding": "gzip"} if path.endswith("x") else {})
        check_headers(answer)
        assert (answer.status, answer.headers["cache-control"]) == (
            200,
            "public, max-age=31536000, immutable",
        )
        assert ask(port, path.partition("?")[0]).headers["cache-control"] == "no-cache"
    for name in ("x.css", "htmx.LICENSE", "..%2fsite.py", ""):
        assert ask(port, f"/static/{name}").status == 404


def test_no_template_has_what_the_policy_forbids_or_names_another_site() -> None:
    for path in (Path(package.__file__).parent / "templates").iterdir():
        text = path.read_text()
        assert not re.search(r"\sstyle=|<style|\son[a-z]+=|javascript:|\|\s*safe|autoescape", text), path.name
        assert not re.search(r"<script(?![^>]*\ssrc=)", text), path.name
        assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", text), path.name
        for form in re.findall(r"<form[^>]*method=\"post\".*?</form>", text, re.DOTALL):
            assert 'name="key"' in form, path.name
