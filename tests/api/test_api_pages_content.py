"""What the pages of the dashboard say: the state now, datasets, and one dataset."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from extent import examples
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pages_client import Visitor, text_of
from pages_seen import Seen
from postgres_server import on_both_databases
from servers import Running
from sqlalchemy import update
from staddle.v1 import service_pb2 as sv
from staddle_server.api.http.pages.dataset import USUAL_MIN, usual
from staddle_server.api.http.pages.datasets import PAGE
from staddle_server.api.http.pages.now import headline
from staddle_server.api.http.pages.table import PAGES
from staddle_server.api.http.pages.words import Words, span
from staddle_server.base.clock import NS
from staddle_server.catalog import DatasetTotals, schema
from staddle_server.catalog.overview import DAY_NS
from staddle_server.catalog.validation import pack_tags
from staddle_server.store.space import MinFree, Space
from staddle_server.upkeep.lifecycle.planning import PLANS_TENANT_MAX
from thin import back_up

HOUR_NS = 3600 * NS


@pytest.fixture
def seen(running: Running) -> Seen:
    return Seen(running)


# --- now


def totals(datasets: int, oldest_ns: int = 0) -> DatasetTotals:
    return DatasetTotals(datasets, datasets, 0, oldest_ns)


def test_one_sentence_says_how_all_is() -> None:
    now_ns = 10 * DAY_NS
    assert headline(totals(0), [], [], now_ns) == "Nothing is backed up yet."
    assert headline(totals(3), [], [], now_ns) == "No dataset has a backup yet."
    oldest = now_ns - 5 * HOUR_NS
    assert (
        headline(totals(14, oldest), [], [], now_ns)
        == "All 14 datasets are safe; the oldest success is 5 hours ago."
    )
    unexpected = totals(14, oldest)._replace(expected=13)
    assert headline(unexpected, [], [], now_ns) == "Nothing needs you; the oldest success is 5 hours ago."
    assert (
        headline(totals(1, oldest), [], [], now_ns)
        == "The dataset is safe; the oldest success is 5 hours ago."
    )


@on_both_databases
def test_only_what_is_bad_is_shown_with_why_and_where(seen: Seen) -> None:
    for name in ("good", "late", "broken"):
        back_up(seen.stub, name, {"a": b"1"})
        seen.expect(name)
    assert "All 3 datasets are safe; the oldest success is" in seen.says()
    assert "Needs you" not in seen.says()
    seen.succeeded("late", 2 * DAY_NS)
    seen.fail("broken", "pg_dump exited with 1", "db2.example")
    said = seen.says()
    assert "2 of 3 datasets need you." in said
    bad = said.partition("Needs you")[2].partition("The service")[0]
    late, broken = bad.index("late is late"), bad.index("The last backup of broken failed")
    assert late < broken
    assert "for 24 hours" in bad[late:broken]
    assert "newest success 2 days ago , expected every 24 hours" in bad[late:broken]
    assert all(words in bad[broken:] for words in ("on db2.example", "pg_dump exited with 1", "last attempt"))
    assert "staddle runs broken" in bad
    assert "good" not in bad


def test_events_about_tokens_are_for_administrators(seen: Seen) -> None:
    seen.alarm("The token nightly ends soon.", kind="token")
    for page in ("/", "/events"):
        admin, reader = seen.says(page), seen.says(page, seen.reader)
        assert ("nightly" in admin, "nightly" in reader) == (True, False)


def test_events_of_the_service_are_for_administrators_and_of_other_tenants_for_nobody(seen: Seen) -> None:
    seen.running.make_tenant("other")
    seen.alarm("The lock of this tenant is late.")
    seen.alarm("The disk is nearly full.", tenant="")
    seen.alarm("Secret things of another.", tenant="other")
    admin, reader = seen.says(), seen.says(visitor=seen.reader)
    assert "2 things need you." in admin
    assert "1 thing needs you." in reader
    for said in (admin, reader):
        assert "The lock of this tenant is late." in said
        assert "Secret" not in said
    assert ("The disk is nearly full." in admin, "The disk is nearly full." in reader) == (True, False)
    assert ("Run staddle-server lock ." in admin, "staddle-server" in reader) == (True, False)


def test_what_is_worst_comes_first(seen: Seen) -> None:
    seen.alarm("A small thing.", "warning")
    back_up(seen.stub, "one", {"a": b"1"})
    seen.fail("one", "why")
    seen.alarm("A great thing.")
    said = seen.says()
    places = [said.index(words) for words in ("A great thing.", "backup of one failed", "A small thing.")]
    assert places == sorted(places)


def test_the_tiles_say_how_the_service_is(seen: Seen) -> None:
    back_up(seen.stub, "one", {"a": b"1" * 1000})
    said = seen.says()
    for words in ("Serving", "None known", "Oldest unread byte", "Keys and certificates", "stored"):
        assert words.lower() in said.lower(), words
    seen.running.service._conditions._takes_backups = lambda: False
    assert "Restore-only backups are refused; restores work" in seen.says()


def test_nothing_is_safe_while_a_tile_or_the_watch_for_events_says_otherwise(seen: Seen) -> None:
    back_up(seen.stub, "one", {"a": b"1"})
    seen.expect("one")
    assert "The dataset is safe" in seen.says()
    seen.stub.SetExpectation(
        sv.SetExpectationRequest(
            dataset="one", every=timedelta(days=1), mute_until_time=datetime(2100, 1, 1, tzinfo=UTC)
        )
    )
    seen.succeeded("one", 9 * DAY_NS)
    assert "Nothing needs you" in seen.says()
    seen.expect("one")
    seen.succeeded("one", 0)
    service = seen.running.service
    service._events._failing = True
    said = seen.says()
    assert "1 thing needs you." in said
    assert "This server cannot tell whether something new is wrong" in said
    service._events._failing = False
    service._conditions._takes_backups = lambda: False
    for visitor in (seen.admin, seen.reader):
        page = visitor.page("/")
        assert "1 thing needs you." in text_of(page)
        assert '<section class="headline bad">' in page
        assert "Service: Restore-only" in page
    seen.alarm("The disk is nearly full.", tenant="", kind="restore-only")
    said = seen.says()
    assert "1 thing needs you." in said  # the alarm says the same as the tile, and more
    assert "The disk is nearly full." in said


def test_the_free_space_and_its_forecast_are_for_administrators(running: Running) -> None:
    running.service._space = Space([str(running.root)], MinFree(size_bytes=1))
    seen = Seen(running)
    back_up(seen.stub, "one", {"a": b"1"})
    assert "no forecast yet" in seen.says()
    free = running.service._space.free()[0].free_bytes
    per_hour = max(1, free // (24 * 20))
    hours = 24 * 16
    for hour in range(hours):
        at_ns = seen.now_ns - (hours - hour) * HOUR_NS
        running.catalog.space_samples.note("", {str(running.root): free + (hours - hour) * per_hour}, at_ns)
    said = seen.says()
    assert re.search(r"full in about (19|20|21) days, as it filled in the last 14 days", said), said
    assert "free" not in seen.says(visitor=seen.reader).partition("Store")[2].partition("Service")[0]


def test_a_run_in_progress_has_a_bar_only_where_there_is_something_to_compare_with(seen: Seen) -> None:
    for number in range(3):
        made = back_up(seen.stub, "known", {"a": b"%d" % number})
        seen.move(made.id, seen.now_ns - (9 - number) * HOUR_NS, 600 * NS)
    seen.stub.BeginUpload(sv.BeginUploadRequest(dataset="known", request_id="1", host="web1"))
    seen.stub.BeginUpload(sv.BeginUploadRequest(dataset="fresh", request_id="2"))
    said = seen.says()
    running = said.partition("Running")[2]
    assert "left, if it takes as long as usual (10 minutes)" in running
    assert "on web1" in running
    assert "The first backup of this dataset: nothing to compare with." in running


# --- datasets


@on_both_databases
def test_datasets_show_from_when_to_when_they_are_protected(seen: Seen) -> None:
    days = [seen.now_ns - age * DAY_NS for age in (9, 5, 1)]
    for day in days:
        seen.move(back_up(seen.stub, "one", {"a": b"%d" % day}).id, day, stored_bytes=2048)
    seen.fail("one", "no")
    back_up(seen.stub, "two", {"a": b"22"})
    page = seen.admin.page("/datasets")
    row = page.partition(">one</a>")[2].partition("</tr>")[0]
    words = Words(seen.now_ns)
    assert f"{words.date(days[0])} – {words.date(days[-1])}" in row
    assert "6.0 KiB" in row
    assert '<span class="badge red">failed</span>' in row
    assert re.search(r"30 days: 3 with a backup, 1 with failures alone and 26 without a run", row)


def test_a_dataset_shows_when_a_restore_was_last_proven_and_what_the_last_trial_found(seen: Seen) -> None:
    back_up(seen.stub, "one", {"a": b"1"})
    row = seen.admin.page("/datasets").partition(">one</a>")[2].partition("</tr>")[0]
    assert '<td data-name="Proven restore">never</td>' in row
    with seen.running.catalog.database.write() as connection:
        drilled = {"drill_ns": seen.now_ns, "drill_number": 1, "drill_fault": "a/b: a chunk is missing"}
        proven = {"proven_ns": seen.now_ns - 3 * DAY_NS, "proven_number": 1}
        connection.execute(update(schema.datasets).values(**drilled, **proven))
    row = seen.admin.page("/datasets").partition(">one</a>")[2].partition("</tr>")[0]
    assert re.search(
        r'data-name="Proven restore"><span class="badge red">failed</span> <time[^>]*>3 days ago', row
    )
    said = seen.says("/dataset?name=one")
    assert "a/b: a chunk is missing" in said
    assert "Last proven restore 3 days ago , of number 1" in said


@on_both_databases
def test_datasets_are_filtered_by_name_and_by_state(seen: Seen) -> None:
    for name in ("Orders", "orders_old", "web%", "quiet"):
        back_up(seen.stub, name, {"a": b"1"})
    seen.expect("never")
    seen.expect("Orders")
    seen.fail("quiet", "why")

    def listed(query: str) -> list[str]:
        return [
            html.unescape(name)
            for name in re.findall(r'scope="row"><a[^>]*>([^<]*)<', seen.admin.page(f"/datasets?{query}"))
        ]

    assert listed("named=ORDERS") == ["Orders", "orders_old"]
    assert listed("named=r_o") == []
    assert listed("named=s_o") == ["orders_old"]
    assert listed("named=%25") == ["web%"]
    assert listed("state=troubled") == ["quiet"]
    assert listed("state=never") == ["never"]
    assert listed("state=unexpected") == ["orders_old", "quiet", "web%"]
    assert listed("state=muted") == []
    assert seen.admin.get("/datasets?state=x").status == 400


def test_datasets_come_in_pages(seen: Seen) -> None:
    names = [f"d{number:03}" for number in range(PAGE + 3)]
    for name in names:
        seen.expect(name)
    first = seen.admin.page("/datasets?state=never")
    further = re.search(r'href="([^"]+)" rel="next"', first)
    assert further
    rest = seen.admin.page(html.unescape(further[1]))
    found = [re.findall(r'scope="row"><a[^>]*>([^<]*)<', page) for page in (first, rest)]
    assert found == [names[:PAGE], names[PAGE:]]
    assert 'rel="next"' not in rest


# --- one dataset


@on_both_databases
def test_a_dataset_shows_its_backups_its_plots_and_what_goes_next(seen: Seen) -> None:
    made = [back_up(seen.stub, "one", {"a": b"%d" % number * 500}) for number in range(12)]
    for number, backup in enumerate(made):
        at_ns = seen.now_ns - (12 - number) * DAY_NS
        seen.move(backup.id, at_ns, 60 * NS, stored_bytes=10_000_000 if number == 10 else 1000 + number)
    seen.stub.SetRetention(sv.SetRetentionRequest(dataset="one", policy={"keep_daily": 5}))
    seen.stub.SetHold(sv.SetHoldRequest(dataset="one", backup=made[11].id, reason="case 17"))
    page = seen.admin.page("/dataset?name=one")
    said = text_of(page)
    assert "Policy: --keep-daily 5 . The next time that it is applied, it deletes 7 backups." in said
    assert "held a legal hold since" in said
    assert "case 17" in said
    table = page.partition('<table id="table-new">')[2].partition("</table>")[0]
    unusual = [row for row in table.split("<tr>") if 'data-v="10000000"' in row]
    assert len(unusual) == 1
    assert unusual[0].count("9.5 MiB") == 2  # as its value, and as unusual
    assert len(re.findall(r'row"><a[^>]*>Number (\d+)', page)) == 12
    freed = seen.says("/dataset?name=one&freed=1")
    assert re.search(r"Once collected, that frees [\d.]+ (B|KiB)", freed), freed


def test_a_page_makes_no_plan_beyond_the_limit_of_plans(seen: Seen) -> None:
    back_up(seen.stub, "one", {"a": b"1"})
    seen.stub.SetRetention(sv.SetRetentionRequest(dataset="one", policy={"keep_daily": 5}))
    with ExitStack() as stack:
        for _ in range(PLANS_TENANT_MAX):
            stack.enter_context(seen.running.service._policies.planning.of(seen.running.tenant))
        said = seen.says("/dataset?name=one&freed=1")
        assert f"The server is busy: {PLANS_TENANT_MAX} retention plans of this tenant" in said
    assert "Policy: --keep-daily 5" in seen.says("/dataset?name=one")


def test_a_dataset_that_does_not_exist_is_not_found_also_if_another_tenant_has_it(seen: Seen) -> None:
    other = seen.running.make_tenant("other")
    back_up(seen.running.stub(tenant=other), "theirs", {"a": b"1"})
    for name in ("theirs", "none"):
        answer = seen.admin.get(f"/dataset?name={name}")
        assert (answer.status, b"does not exist" in answer.body) == (404, True)
    for page in ("/dataset?name=", "/browse?dataset="):
        assert seen.admin.get(page).status == 400
    for name in ("%00", "a%0ab", "x" * 3000):
        for page in (
            "/dataset?name=",
            "/browse?dataset=",
            "/datasets?named=",
            "/datasets?after=",
            "/runs?dataset=",
        ):
            assert seen.admin.get(page + name).status == 400, page
    assert "theirs" not in seen.admin.page("/datasets")
    seen.fail("mistyped & odd", "no such host")
    answer = seen.admin.get("/dataset?name=mistyped%20%26%20odd")
    assert (answer.status, answer.headers["location"]) == (303, "/runs?dataset=mistyped%20%26%20odd")
    assert "no such host" in seen.says(answer.headers["location"])
    for before in ("x", "-1", "9" * 40, "²"):
        back_up(seen.stub, "ours", {"a": b"1"})
        assert seen.admin.get(f"/dataset?name=ours&before={quote(before)}").status == 400


def test_older_backups_are_further_pages(seen: Seen) -> None:
    for number in range(23):
        back_up(seen.stub, "one", {"a": b"%d" % number})
    first = seen.admin.page("/dataset?name=one")
    further = html.unescape(re.search(r'href="([^"]+)" rel="next"', first)[1])  # type: ignore[index]
    numbers = [
        number
        for page in (first, seen.admin.page(further))
        for number in re.findall(r'row"><a[^>]*>Number (\d+)', page)
    ]
    assert numbers == [str(number) for number in range(23, 0, -1)]


def test_what_is_unusual_is_far_from_the_median_of_those_before_it() -> None:
    even = [100.0] * USUAL_MIN
    assert usual(even, USUAL_MIN - 1) == (None, None)
    assert usual([*even, 105.0], USUAL_MIN) == (90.0, pytest.approx(110.0))
    assert usual([*even, 500.0, 100.0], USUAL_MIN + 1) == (90.0, pytest.approx(110.0))
    uneven = [80.0, 120.0] * USUAL_MIN
    assert not usual(uneven, len(uneven)).is_outlier(130.0)
    assert usual(uneven, len(uneven)).is_outlier(1000.0)


# --- forms


def act(visitor: Visitor, key: str | None = None, **form: str) -> int:
    return visitor.post("/do", {"key": visitor.form_key() if key is None else key, **form}).status


def test_forms_do_what_the_calls_do_and_each_shows_its_command(seen: Seen) -> None:
    backup = back_up(seen.stub, "it's", {"a": b"1"})
    back_up(seen.stub, "it's", {"a": b"2"})
    about = {"dataset": "it's", "backup": backup.id}
    page = html.unescape(seen.admin.page("/dataset?name=it%27s"))
    for verb in ("hold", "delete"):
        assert f"staddle {verb} 'it'\"'\"'s' {backup.id[:8]}" in page
    assert act(seen.admin, action="hold", reason="case", **about) == 303
    assert "case" in seen.says("/dataset?name=it%27s&done=hold")
    assert "The legal hold is in place." in seen.says("/dataset?name=it%27s&done=hold")
    assert act(seen.admin, action="delete", **about) == 400  # it is held
    assert act(seen.admin, action="release", **about) == 303
    assert act(seen.admin, action="delete", **about) == 303
    assert "can be undeleted until" in seen.says("/dataset?name=it%27s")
    assert act(seen.admin, action="undelete", **about) == 303
    assert act(seen.admin, action="erase", **about) == 400
    assert act(seen.admin, action="hold", dataset="none", backup=backup.id, reason="x") == 404


def test_forms_need_the_key_of_the_session_and_the_role(seen: Seen) -> None:
    backup = back_up(seen.stub, "one", {"a": b"1"})
    about = {"action": "delete", "dataset": "one", "backup": backup.id}
    writer = Visitor(seen.port, seen.running.token("writer"))
    assert act(seen.admin, key="", **about) == 403
    assert act(seen.admin, key=seen.reader.form_key(), **about) == 403
    assert [act(visitor, **about) for visitor in (seen.reader, writer)] == [403, 403]
    assert Visitor(seen.port).post("/do", about).status == 303  # to the login
    assert not seen.stub.GetBackup(sv.GetBackupRequest(dataset="one")).backup.HasField("delete_time")
    for visitor in (seen.reader, writer):
        assert 'action="/do"' not in visitor.page("/dataset?name=one")
    assert 'action="/do"' in seen.admin.page("/dataset?name=one")


# --- hostile names and texts

TAGS = re.compile(r"<(/?)([a-zA-Z!][a-zA-Z0-9-]*)((?:[^>\"']|\"[^\"]*\"|'[^']*')*)>")
HOSTILE = st.text(
    alphabet=st.one_of(st.sampled_from("<>\"'&`{}%/=\\; :x"), st.characters(exclude_categories=("Cs", "Cc"))),
    min_size=1,
    max_size=40,
)


def skeleton(page: str) -> list[tuple[str, str]]:
    """The tags of a page with the names of their attributes."""
    return [
        (tag, " ".join(re.findall(r"([\w-]+)=", re.sub(r"\"[^\"]*\"", '""', attributes))))
        for _, tag, attributes in TAGS.findall(page)
    ]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A service with one dataset, whose newest backup failed."""
    running = Running(tmp_path_factory.mktemp("hostile"))
    made = Seen(running)
    back_up(made.stub, "plain", {"a": b"1"}, tags={"k": "v"}, host="plain")
    made.fail("plain", "plain", "plain")
    # Two pages are compared: no task and no event may come between them.
    running.service._schedule.stop()
    running.service._events.stop()
    yield made
    running.stop()


# Each example asks for every page: a failure is shown as it was found, not shrunk for minutes.
@settings(max_examples=examples(25), phases=(Phase.explicit, Phase.generate))
@given(name=HOSTILE, reason=HOSTILE, host=HOSTILE, tag=HOSTILE)
def test_whatever_people_and_machines_named_stays_text(
    named: Seen, name: str, reason: str, host: str, tag: str
) -> None:
    plain = pages_with(named, "plain", "plain", "plain", "plain")
    hostile = pages_with(named, name, reason, host, tag)
    for path, before in plain.items():
        assert skeleton(before) == skeleton(hostile[path]), path
    assert name.strip() in html.unescape(hostile["/datasets"])


def pages_with(named: Seen, name: str, reason: str, host: str, tag: str) -> dict[str, str]:
    """The pages, by path, if the dataset has this name, and so on."""
    with named.running.catalog.database.write() as connection:
        connection.execute(update(schema.datasets).values(name=name, host=host))
        connection.execute(update(schema.backups).values(tags=pack_tags({tag: tag}), host=host))
        connection.execute(update(schema.runs).values(reason=reason, host=host))
    name = quote(name, safe="")
    query = f"?name={name}&dataset={name}&path=a"
    paths = [page.path for page in PAGES if page.verb == "GET"]
    return {path: re.sub(r"<time.*?</time>", "", named.admin.page(path + query)) for path in paths}


# --- words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (86_400, "24 hours"),
        (172_800, "2 days"),
        (10**9, "11,574 days"),
    ],
)
def test_spans_are_in_whole_units(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_times_that_no_calendar_has_are_written_all_the_same() -> None:
    words = Words(0)
    for ns in (0, 2**63 - 1, -(2**63), 10**30, -(10**30)):
        assert "<time" in words.ago(ns) + words.at(ns) + words.date(ns)
    assert words.marked("run `a <b>` or `c") == "run <code>a &lt;b&gt;</code> or <code>c</code>"
