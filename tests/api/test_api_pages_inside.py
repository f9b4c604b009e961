"""Pages that look into backups, at runs and events, at the store, and at who may do what."""

from __future__ import annotations

import contextlib
import html
import io
import re
import shlex
import zipfile
from urllib.parse import quote

import click
import pytest
from http_door import ask
from pages_client import Visitor, check_headers, text_of
from pages_seen import Seen
from postgres_server import on_both_databases
from servers import Running
from sqlalchemy import delete, insert, update
from staddle.command.run import command_named
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api.http.pages.browse import ENTRIES, TEXT_BYTES_MAX
from staddle_server.api.http.pages.history import EVENTS, RUNS
from staddle_server.api.http.pages.search import FOUND
from staddle_server.api.http.pages.store import steps_of
from staddle_server.api.http.pages.table import PAGES
from staddle_server.api.http.pages.versions import VERSIONS
from staddle_server.app.store_place import DataDirectoryError
from staddle_server.base.clock import NS
from staddle_server.base.errors import Conflict
from staddle_server.catalog import schema
from staddle_server.catalog.collection_runs import KEPT, CollectionRun
from staddle_server.catalog.overview import DAY_NS
from staddle_server.cli.run import COMMANDS
from staddle_server.restore.browse import Reads
from staddle_server.restore.search import GAPS_MAX, Matches
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.gc.collector import Collector
from thin import back_up, begin, finish, messages, noise, small

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 50


@pytest.fixture
def seen(running: Running) -> Seen:
    return Seen(running)


def links(page: str) -> list[str]:
    return [html.unescape(link) for link in re.findall(r'href="([^"]+)"', page)]


# --- looking into a backup


def test_a_directory_shows_its_entries_and_leads_to_files(seen: Seen) -> None:
    back_up(seen.stub, "one", {"a/b/c.txt": b"deep", "a/x y&z.txt": b"odd", "top.txt": b"top"})
    page = seen.admin.page("/browse?dataset=one")
    inner = next(link for link in links(page) if link.startswith("/browse") and "path=a" in link)
    page = seen.admin.page(inner)
    file = next(link for link in links(page) if link.startswith("/file"))
    assert "odd" in seen.says(file)
    assert "This backup has no such path" in seen.says("/browse?dataset=one&path=none")
    assert "In this backup, this is not a file" in seen.says("/file?dataset=one&path=a")
    assert "This backup has no such file" in seen.says("/file?dataset=one&path=none")
    for bad in ("path=../x", "path=/etc", "path=a//b", "raw=zz", "backup=zz", "backup=ffff"):
        assert seen.admin.get(f"/browse?dataset=one&{bad}").status in {400, 404}, bad


def test_names_that_are_not_text_can_be_visited_and_downloaded(seen: Seen) -> None:
    entry = pb.Entry(raw_path=b"\xff/\xfe.txt", data=b"bytes")
    parts = [begin("one"), sv.BackupPart(entry=entry), finish(1, 5)]
    seen.stub.Backup(messages(parts))
    page = seen.admin.page("/browse?dataset=one")
    inner = next(link for link in links(page) if "raw=" in link and link.startswith("/browse"))
    file = next(link for link in links(seen.admin.page(inner)) if link.startswith("/file"))
    page = seen.admin.page(file)
    download = next(link for link in links(page) if link.startswith("/download"))
    assert seen.admin.get(download).body == b"bytes"
    seen.admin.page(next(link for link in links(page) if "versions=1" in link).partition("#")[0])


def test_a_directory_of_many_entries_comes_in_pages(seen: Seen) -> None:
    count = ENTRIES + 20
    parts = [begin("one"), *(small(f"f{number:04}", b"1") for number in range(count)), finish(count, count)]
    seen.stub.Backup(messages(parts))
    first = seen.admin.page("/browse?dataset=one")
    further = html.unescape(re.search(r'href="([^"]+)" rel="next">Next entries', first)[1])  # type: ignore[index]
    found = [name for page in (first, seen.admin.page(further)) for name in re.findall(r">(f\d{4})<", page)]
    assert found == [f"f{number:04}" for number in range(count)]


def test_older_backups_are_a_choice_and_versions_of_a_file_are_told_apart(seen: Seen) -> None:
    contents = [b"one", b"one", b"two", b"three"]
    made = [back_up(seen.stub, "one", {"a": data, "z": b"%d" % each}) for each, data in enumerate(contents)]
    back_up(seen.stub, "one", {"z": b"none"})
    page = seen.admin.page(f"/file?dataset=one&path=a&backup={made[0].id}&versions=1")
    said = text_of("<main" + page.partition('id="versions"')[2] + "</main>")
    assert "5 backups looked into, to the oldest one." in said
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition('id="versions"')[2], re.DOTALL)[1:]
    differs = [re.search(r'data-name="Differs">(.*?)</td>', row)[1] for row in rows]  # type: ignore[index]
    assert differs == ["removed", "content (+2 B)", "content (same size)", ""]
    assert ["2 backups" in row for row in rows] == [False, False, False, True]
    assert [">shown<" in row for row in rows] == [False, False, False, True]
    newer = next(link for link in links(page) if "backup=" + made[1].id in link)
    assert f"number {made[1].number}" in seen.admin.page(newer)
    assert "This backup has no such path" not in seen.says("/browse?dataset=one")


def test_many_versions_come_in_pages(seen: Seen) -> None:
    count = VERSIONS + 3
    for number in range(count):
        back_up(seen.stub, "one", {"a": b"x" * number})
    first = seen.admin.page("/file?dataset=one&path=a&versions=1")
    further = html.unescape(re.search(r'href="([^"]+)" rel="next">Older versions', first)[1])  # type: ignore[index]
    second = seen.admin.page(further)
    assert "Older versions" not in second
    found = [
        int(number)
        for page in (first, second)
        for number in re.findall(
            r'data-name="From backup">.*?number (\d+)<', page.partition('id="versions"')[2]
        )
    ]
    assert found == list(range(count, 0, -1))


def test_a_backup_is_searched_in_steps_and_each_time_is_one_move_away(seen: Seen) -> None:
    names = [f"d/f{number:04}.txt" for number in range(FOUND + 5)]
    first = back_up(seen.stub, "one", dict.fromkeys([*names, "d/<b>&.txt", "top.TXT"], b"x"))
    back_up(seen.stub, "one", {"d/f0000.txt": b"x"})
    address = f"/search?dataset=one&backup={first.id}"
    assert "Back to the top" in seen.says(address)
    assert "no such directory" in seen.says(address + "&path=none&name=x")
    assert "the limit is 1024 characters" in seen.says(address + "&name=" + "x" * 1025)
    page = seen.admin.page(address + "&name=.txt")
    assert "The search stopped after" in page
    further = html.unescape(re.search(r'href="([^"]+)" rel="next">Continue', page)[1])  # type: ignore[index]
    rest = seen.admin.page(further)
    found = [each for part in (page, rest) for each in re.findall(r"<bdi>([^<>]+)</bdi></a>\s*</th>", part)]
    assert found == ["d/&lt;b&gt;&amp;.txt", *names, "top.TXT"]
    assert "That is all." in rest
    below = seen.says(address + "&path=d&name=f000*")
    assert "10 entries found" in below
    assert "d/f0000.txt" not in below
    newer = next(link for link in links(page) if link.startswith("/search") and first.id not in link)
    assert "1 entry found" in seen.says(newer)
    for name in ("[", "**", "a/**/**/b", "\x00", "../x", "%", "*" * 500, "[!" * 100):
        assert seen.admin.get(f"{address}&name={quote(name)}").status == 200, name


def test_a_search_names_some_unreadable_parts_and_says_that_there_are_more(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(seen.stub, "one", {"a.txt": b"x"})
    found = Matches(gaps=[f"part {number} is damaged" for number in range(GAPS_MAX)])
    monkeypatch.setattr(Reads, "search", lambda *_, **__: found)
    address = "/search?dataset=one&name=txt"
    assert "part 9 is damaged" in seen.says(address)
    assert "More parts" not in seen.says(address)
    found.has_more_gaps = True
    assert "More parts could not be searched: only the first 10 are named here." in seen.says(address)


@on_both_databases
def test_backups_to_choose_from_span_the_whole_history_and_surround_the_chosen_one(running: Running) -> None:
    made = [back_up(running.stub(), "one", {"a": b"%d" % number}) for number in range(40)]
    running.stub().DeleteBackup(sv.DeleteBackupRequest(dataset="one", backup=made[20].id))

    def numbers(at: int, limit: int) -> list[int]:
        found = running.catalog.overview.stops(running.tenant, "one", at, limit)
        return [each.number for each in found]

    assert numbers(40, 39) == [number for number in range(1, 41) if number != 21]
    # The newest 3, every fifth of all, and the first one.
    spread = {1, 4, 9, 14, 19, 25, 30, 35, 38, 39, 40}
    assert numbers(40, 9) == sorted(spread)
    assert numbers(20, 9) == sorted(spread | {19, 20, 22})
    assert numbers(1, 9) == sorted(spread | {1, 2})


def test_previews_are_of_text_and_of_safe_images_alone(seen: Seen) -> None:
    files = {
        "text": b"<script>alert(1)</script> \xc3\xa4",
        "png.html": PNG,
        "svg.svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
        "nul": b"a\0b",
        "latin": b"\xe4\xf6",
        "large": b"x" * (TEXT_BYTES_MAX + 1),
        "empty": b"",
    }
    back_up(seen.stub, "one", files)

    def preview(path: str) -> str:
        return seen.admin.page(f"/file?dataset=one&path={path}").partition('id="preview"')[2]

    assert "&lt;script&gt;alert(1)&lt;/script&gt; ä" in preview("text")
    assert '<img class="preview" src="/download/datasets/one/backups/' in preview("png.html")
    assert "<img" not in preview("svg.svg")
    assert "&lt;svg" in preview("svg.svg")
    assert "It is not text" in preview("nul")
    assert "It is not text" in preview("latin")
    assert "too large for a preview" in preview("large")
    assert '<pre class="text"></pre>' in preview("empty")


def test_downloads_are_for_people_who_are_logged_in_and_run_nothing(seen: Seen) -> None:
    dataset = "/srv/w w&%"
    made = back_up(seen.stub, dataset, {"d/p.html": b"<script>alert(1)</script>", "pic": PNG})
    name = quote(dataset, safe="")
    page = seen.reader.page(f"/file?dataset={name}&path=d/p.html")
    download = next(link for link in links(page) if link.startswith("/download"))
    answer = seen.reader.get(download)
    assert (answer.status, answer.body) == (200, b"<script>alert(1)</script>")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in answer.headers["content-security-policy"]
    part = seen.reader.get(download, range="bytes=1-6")
    assert (part.status, part.body) == (206, b"script")
    assert Visitor(seen.port).get(download).status == 401
    assert (
        ask(seen.port, download, headers={"authorization": f"Bearer {seen.running.token('reader')}"}).status
        == 401
    )
    assert seen.reader.get(download.replace(made.id, "latest")).status == 200
    for path in ("/download/datasets", "/download/x", download.replace("/download/", "/v1/")):
        assert seen.reader.get(path).status in {401, 404}
    other = Visitor(seen.port, seen.running.token("reader", seen.running.make_tenant("other")))
    assert other.get(download).status == 404


def test_a_directory_is_downloaded_as_an_archive(seen: Seen) -> None:
    back_up(seen.stub, "a b", {"d/one.txt": b"1", "d/two.txt": b"22", "other": b"3"})
    page = seen.reader.page("/browse?dataset=a%20b&path=d")
    found = [link for link in links(page) if link.startswith("/download")]
    assert [re.search(r"format=(\w+)", link)[1] for link in found] == ["zip", "tar"]  # type: ignore[index]
    with zipfile.ZipFile(io.BytesIO(seen.reader.get(found[0]).body)) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    assert files == {"d/one.txt": b"1", "d/two.txt": b"22"}
    assert Visitor(seen.port).get(found[0]).status == 401


def test_two_backups_are_compared(seen: Seen) -> None:
    before = back_up(seen.stub, "one", {"same": b"1", "gone": b"22", "other": b"333"})
    after = back_up(seen.stub, "one", {"same": b"1", "other": b"4444", "new": b"55555"})
    said = seen.says("/compare?dataset=one")
    assert "~ changed other 3 B 4 B" in said
    assert "+ added new 5 B" in said
    assert "- removed gone 2 B" in said
    assert "same" not in said.partition("Change Path")[2].partition("$")[0]
    assert f"staddle diff one {before.id[:8]} {after.id[:8]}" in said
    turned = seen.says(f"/compare?dataset=one&from={after.id}&backup={before.id}")
    assert "+ added gone" in turned
    assert "Nothing differs" in seen.says(f"/compare?dataset=one&from={after.id}&backup={after.id}")
    assert "no earlier backup" in seen.says(f"/compare?dataset=one&backup={before.id}")


# --- runs and events


@on_both_databases
def test_runs_are_listed_by_dataset_and_outcome_and_in_pages(seen: Seen) -> None:
    for number in range(RUNS + 2):
        seen.stub.ReportRun(
            sv.ReportRunRequest(
                dataset=f"d{number % 2}", reason=f"why {number}", request_id=str(number), host="h"
            )
        )
    back_up(seen.stub, "good", {"a": b"1"})
    first = seen.admin.page("/runs?outcome=failed")
    further = html.unescape(re.search(r'href="([^"]+)" rel="next"', first)[1])  # type: ignore[index]
    rest = seen.admin.page(further)
    reasons = [int(number) for page in (first, rest) for number in re.findall(r"why (\d+)<", page)]
    assert sorted(reasons) == list(range(RUNS + 2))
    assert ("hx-get" in first, "hx-get" in rest) == (True, False)
    assert "good" not in first.partition("<tbody>")[2]
    one = seen.admin.page("/runs?dataset=d1")
    assert set(re.findall(r">(d\d|good)</a>", one)) == {"d1"}
    assert "No run is so." in seen.says("/runs?outcome=abandoned")
    for bad in ("outcome=x", "before=x", "before=1", "before=9.zz", "before=" + "9" * 40 + ".00"):
        assert seen.admin.get(f"/runs?{bad}").status in {200, 400}, bad
    for bad in (f"{2**63}.00", "-1.00", "1_0.00", "+1.00", quote("²") + ".00", quote("٣") + ".00"):
        assert seen.admin.get(f"/runs?before={bad}").status == 400, bad
    assert seen.admin.get("/runs?dataset=none").status == 404


def test_events_are_listed_open_ones_first_and_only_ours(seen: Seen) -> None:
    for number in range(EVENTS + 1):
        seen.alarm(f"Thing {number} is wrong.", "warning")
    seen.running.make_tenant("other")
    seen.alarm("Of another.", tenant="other")
    seen.alarm("Of the service.", tenant="")
    with seen.running.catalog.database.write() as connection:
        newest = schema.events.c.text == f"Thing {EVENTS} is wrong."
        connection.execute(update(schema.events).where(newest).values(over_ns=seen.now_ns))
    admin, reader = seen.says("/events"), seen.says("/events", seen.reader)
    assert ("Of the service." in admin, "Of the service." in reader) == (True, False)
    assert "Of another." not in admin + reader
    assert f"Thing {EVENTS} is wrong." not in admin  # it is over, and so behind all others
    assert "2 older events are not shown." in admin


# --- the store and access


@on_both_databases
def test_the_store_says_what_was_read_and_when(seen: Seen) -> None:
    assert "Nothing is stored." in seen.says("/store")
    for name in ("one", "two", "three"):
        back_up(seen.stub, name, {"a": name.encode() * 2000})
    with seen.running.catalog.database.write() as connection:
        packs = [
            row for (row,) in connection.execute(schema.packs.select().with_only_columns(schema.packs.c.id))
        ]
        for pack, days in zip(packs, (0, 20), strict=False):
            this = update(schema.packs).where(schema.packs.c.id == pack)
            connection.execute(this.values(verified_ns=seen.now_ns - days * DAY_NS - NS))
    said = seen.says("/store")
    for words in ("Within a day", "Within 30 days", "Never since it was written"):
        assert re.search(rf"{words} : [\d.]+ (B|KiB) in 1 pack|{words}: [\d.]+ (B|KiB) in 1 pack", said), (
            words,
            said,
        )
    assert "There is no second site." in said
    assert "live" in said
    reader = seen.says("/store", seen.reader)
    assert "Capacity" not in reader
    assert "Upkeep" not in reader


@on_both_databases
def test_the_store_shows_what_the_last_collections_looked_at_and_freed(seen: Seen) -> None:
    assert "No collection has run yet." in seen.says("/store")
    running = seen.running
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    collector = Collector(running.catalog, tenants, running.clock)
    for seed, name in enumerate(("one", "two", "three")):
        made = back_up(seen.stub, name, {"a": noise(9000, seed)})
    seen.stub.DeleteBackup(sv.DeleteBackupRequest(dataset="three", backup=made.id))
    collector.collect()
    said = seen.says("/store", seen.reader)
    assert re.search(r"Looked at: [\d.]+ KiB in 3 packs", said), said
    assert "read 3 manifests, marked" in said
    assert "1 deleted backup can still be undeleted" in said
    assert "Found dead, and condemned: 0 B in 0 packs" in said
    collector.collect(grace_s=0)
    page = seen.admin.page("/store")
    said = text_of(page)
    assert re.search(r"Found dead, and condemned: [\d.]+ KiB in 1 pack", said), said
    assert re.search(r"Left: [\d.]+ KiB in 2 packs", said), said
    assert re.search(r"Freed: [\d.]+ KiB in 1 pack", said), said
    assert "purged 1 deleted backup" in said
    # What is dead is drawn behind what is left, and both are all of it.
    (looked, dead, _, left, *_) = re.findall(
        r'class="part" x="([\d.]+)" width="([\d.]+)"', page[page.index("Looked at:") :]
    )
    assert looked == ("0.0", "100.0")
    assert (left[0], dead[0]) == ("0.0", left[1])
    assert round(float(left[1]) + float(dead[1]), 1) == 100.0
    assert "The last 2 collections" in said


@on_both_databases
def test_the_last_collections_are_kept_and_no_more(running: Running) -> None:
    catalog = running.catalog
    fence = catalog.gc_lease.acquire("test", running.clock.now_ns(), 60.0)
    for number in range(2 * KEPT):
        run = CollectionRun(number, number + 1, {"bytes_freed": number}, "x" * 5000 if number % 2 else "")
        catalog.collections.note(running.tenant, fence, run)
    found = catalog.collections.last(running.tenant)
    assert [each.begun_ns for each in found] == list(range(2 * KEPT))[::-1][:KEPT]
    assert (len(found[0].failure), found[1].failure) == (1000, "")
    # A clock that was ahead, and was set back: what it noted makes none vanish that comes after.
    for number in range(KEPT):
        catalog.collections.note(running.tenant, fence, CollectionRun(10**18, 10**18, {}, f"ahead {number}"))
    for number in range(3):
        catalog.collections.note(running.tenant, fence, CollectionRun(number, 0, {}, f"back {number}"))
    said = [each.failure for each in catalog.collections.last(running.tenant)]
    assert said[:4] == ["back 2", "back 1", "back 0", f"ahead {KEPT - 1}"]
    assert len(said) == KEPT
    catalog.gc_lease.release(fence)
    catalog.gc_lease.acquire("another", running.clock.now_ns(), 60.0)
    with pytest.raises(Conflict):
        catalog.collections.note(running.tenant, fence, found[0])


def test_steps_of_a_collection_without_figures_are_none() -> None:
    assert steps_of({}) == []
    assert steps_of({"bytes_waiting": 5})[4].part == 1.0


def test_the_outcome_of_a_task_of_all_tenants_is_no_tenants_business(seen: Seen) -> None:
    row = {"name": "gc", "begun_ns": seen.now_ns - 5 * NS, "ended_ns": seen.now_ns}
    with seen.running.catalog.database.write() as connection:
        connection.execute(delete(schema.tasks))
        connection.execute(insert(schema.tasks).values(**row, outcome="secret-tenant: 3 packs"))
    said = seen.says("/store")
    assert re.search(r"gc \d+ (second|minute)s ago 5 seconds done", said), said
    assert "secret-tenant" not in said
    with seen.running.catalog.database.write() as connection:
        connection.execute(update(schema.tasks).values(outcome="failed: secret-tenant"))
    said = seen.says("/store")
    assert re.search(r"gc \d+ (second|minute)s ago 5 seconds failed", said), said
    assert "secret-tenant" not in said


@on_both_databases
def test_access_shows_tokens_policies_holds_and_targets(seen: Seen) -> None:
    backup = back_up(seen.stub, "one", {"a": b"1"})
    back_up(seen.running.stub("writer", name="nightly"), "two", {"a": b"1"})
    seen.stub.SetRetention(sv.SetRetentionRequest(dataset="one", policy={"keep_last": 3}))
    seen.stub.SetHold(sv.SetHoldRequest(dataset="one", backup=backup.id, reason="case 1"))
    seen.stub.SetHold(sv.SetHoldRequest(dataset="two", reason="case 2"))
    ago = r"(just now|(in )?\d+ \w+( ago)?)"
    assert re.search(rf"nightly [0-9a-f]{{8}} writer {ago} none known {ago} never", seen.says("/access"))
    seen.running.service.token_uses.write()
    said = seen.says("/access")
    assert re.search(rf"nightly [0-9a-f]{{8}} writer {ago} {ago} {ago} never", said)
    assert "reader-" in said
    assert "--keep-last 3" in said
    assert "one , number 1: case 1" in said
    assert "case 2, since" in said
    assert "There is none: nobody is told" in said
    assert seen.reader.get("/access").status == 403
    token = seen.running.token("reader", name="old")
    assert token
    seen.running.catalog.tokens.revoke(seen.running.tenant, "old", seen.now_ns)
    assert "old" not in seen.says("/access").partition("Policies")[0].split()


# --- commands


def test_every_command_that_a_page_shows_exists_and_takes_these_arguments(seen: Seen) -> None:
    backup = back_up(seen.stub, "it's", {"a b": b"1"})
    back_up(seen.stub, "it's", {"a b": b"2"})
    seen.stub.SetHold(sv.SetHoldRequest(dataset="it's", backup=backup.id, reason="why"))
    seen.stub.SetRetention(sv.SetRetentionRequest(dataset="it's", policy={"keep_last": 1}))
    seen.stub.ReportRun(sv.ReportRunRequest(dataset="it's", reason="why"))
    empty = Seen(Running(seen.running.root / "empty"))
    shown: set[str] = set()
    for visitor in (seen.admin, seen.reader, empty.admin):
        for page in PAGES:
            answer = visitor.get(f"{page.path}?name=it%27s&dataset=it%27s&path=a+b")
            check_headers(answer)
            shown |= set(re.findall(r'<div class="command"><code>([^<]+)</code>', answer.body.decode()))
    empty.running.stop()
    assert len(shown) > 15
    for text in shown:
        program, *words = shlex.split(html.unescape(text))
        taken(program, words)


def taken(program: str, words: list[str]) -> None:
    """Have the program's own parser take the words of a command; nothing runs."""
    command: click.Command
    if program == "staddle":
        command = command_named(words[0])
    else:
        module, _, name = COMMANDS[words[0]].partition(":")
        command = getattr(__import__(module, fromlist=[name]), name)
    context = click.Context(click.Group(program))
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=words[0])
        words = words[1:]
        found = command.get_command(context, words[0])
        assert found is not None, words
        command = found
    # Options that do not exist fail before the data directory is looked for.
    with contextlib.suppress(DataDirectoryError):
        command.make_context(words[0], words[1:], parent=context)
