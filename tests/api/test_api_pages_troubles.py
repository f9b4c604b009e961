"""What pages say of troubles, of odd names, and to people who go where there is no page or act twice."""

from __future__ import annotations

import html
import re
import shlex
import subprocess

import pytest
from http_door import ask
from hypothesis import given
from hypothesis import strategies as st
from pages_seen import Seen
from servers import Running
from sqlalchemy import select
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api.http.pages.words import PATH_CHARS_MAX, path_words, quoted
from staddle_server.catalog import KnownDamage, schema
from staddle_server.upkeep.events.own import _of
from staddle_server.upkeep.notify.command import Command
from staddle_server.upkeep.notify.targets import Filter
from staddle_server.upkeep.replication.lag import SiteLag
from thin import back_up, begin, finish, messages, wait_until

HTML = "text/html,application/xhtml+xml,*/*;q=0.8"
ODD = [
    b"new\nline",
    "\u202etxt.exe".encode(),
    b"\xff\xfe",
    b"it's \\n",
    b"-x",
    "\u05e9\u05dc\u05d5\u05dd".encode(),
]


@pytest.fixture
def seen(running: Running) -> Seen:
    return Seen(running)


# --- troubles


def test_a_second_site_that_takes_no_copies_is_named_with_why_and_what_to_do(seen: Seen) -> None:
    replicas = seen.running.catalog.replicas
    place = "/mnt/second"
    seen.running.service._conditions._watches.store.site = SiteLag(place, 0.0, 0, "")
    replica = replicas.begin(place, replicas.lease(place).acquire("test", seen.now_ns, 600.0), seen.now_ns)
    replicas.end(replica, "9 objects copied", whole_ns=seen.now_ns)
    for visitor in (seen.admin, seen.reader):
        assert "the second site is up to date" in seen.says(visitor=visitor)
    replicas.end(replica, "failed: /mnt/second is missing or empty: is its file system mounted?")
    said = seen.says()
    assert "1 thing needs you." in said
    assert "The second site /mnt/second cannot be copied to" in said
    assert "is its file system mounted?" in said
    assert "staddle-server replicate --status" in said
    store = seen.says("/store")
    assert "the last attempt to copy failed" in store
    assert "is its file system mounted?" in store
    # Readers see that it is so, and nothing of the server's places.
    for path in ("/", "/store"):
        assert "/mnt/second" not in seen.says(path, seen.reader)
    assert "copying to the second site fails" in seen.says(visitor=seen.reader)
    seen.alarm("The second site is behind.", "warning", tenant="", kind="second-site")
    assert "The second site /mnt/second cannot be copied to" not in seen.says()


def test_a_notification_target_that_does_not_answer_is_named_at_once(seen: Seen) -> None:
    seen.running.service.notifier.set_targets(
        [Command("ops", Filter(kinds=frozenset({"drill"})), ("/bin/false",))]
    )
    assert "Nothing is backed up yet." in seen.says()
    seen.running.catalog.deliveries.end("ops", "command", [], "it exited with 1", seen.now_ns)
    said = seen.says()
    assert "The notification target ops cannot be reached" in said
    assert "it exited with 1" in said
    assert "staddle-server notify test ops" in said
    assert "ops" not in seen.says(visitor=seen.reader)
    seen.running.service.notifier.set_targets([])
    assert "ops" not in seen.says()


def test_damage_stands_at_the_top_of_the_store(seen: Seen) -> None:
    back_up(seen.stub, "one", {"a": b"1"})
    assert "damaged" not in seen.says("/store")
    catalog = seen.running.catalog
    with catalog.database.read() as connection:
        pack = connection.execute(select(schema.packs.c.id)).scalar_one()
    catalog.packs.mark_damaged(seen.running.tenant, pack)
    seen.running.service._integrity._look_again()
    wait_until(lambda: seen.says("/store").startswith("Store Stored data is damaged: 1 damaged pack."))
    assert "staddle-server repair" in seen.says("/store")
    assert "staddle-server" not in seen.says("/store", seen.reader)


def test_parts_of_packs_are_of_other_packs_only_beside_damaged_ones() -> None:
    assert _of(KnownDamage(1, 0, 1)) == "1 part of a pack"
    assert _of(KnownDamage(1, 0, 2, 1)) == "2 parts of packs and 1 header or footer"
    assert _of(KnownDamage(1, 1, 2)) == "1 pack and 2 parts of other packs"


# --- names


def test_odd_names_are_shown_as_they_are_and_can_be_visited(seen: Seen) -> None:
    long = b"/".join([b"d" * 200] * 19 + [b"leaf"])
    entries = [pb.Entry(raw_path=each, data=b"x") for each in [*ODD, long]]
    seen.stub.Backup(messages([begin("odd"), *(sv.BackupPart(entry=each) for each in entries), finish(7, 7)]))
    for path in ("/browse?dataset=odd", "/search?dataset=odd&name=*"):
        page = seen.admin.page(path)
        text = html.unescape(page)
        for name in (
            r"new\nline",
            r"\u202etxt.exe",
            r"\xff\xfe",
            r"it's \\n",
            "-x",
            "\u05e9\u05dc\u05d5\u05dd",
        ):
            assert f"<bdi>{name}</bdi>" in text, (path, name)
        assert "\u202e" not in page
    leaf = html.unescape(
        re.search(r'href="(/file[^"]*leaf)"', seen.admin.page("/search?dataset=odd&name=leaf"))[1]
    )  # type: ignore[index]
    page = seen.admin.page(leaf)
    assert "leaf</bdi></h1>" in page
    # The command has all of the path.
    assert long.decode() in page
    for link in re.findall(r'href="(/file[^"]*)"', seen.admin.page("/browse?dataset=odd")):
        assert "Download" in seen.says(html.unescape(link))


@given(st.binary(max_size=600))
def test_a_path_in_words_is_printable_and_has_its_end(path: bytes) -> None:
    words = path_words(path)
    assert words.isprintable()
    assert len(words) <= PATH_CHARS_MAX
    assert path_words(path[-20:])[-20:] == words[-len(path_words(path[-20:])[-20:]) :]


def test_a_word_of_a_command_is_what_a_shell_takes_for_it() -> None:
    words = [*ODD, b"a b", b"$HOME `id` !x", b"", b"\x01\x7f'\\", "é\u200b".encode()]
    done = subprocess.run(
        ["bash", "-c", "printf '%s\\0' " + " ".join(map(quoted, words))], capture_output=True, check=True
    )
    assert done.stdout.split(b"\0")[:-1] == words
    assert quoted("it's") == shlex.quote("it's")


# --- where there is no page, and twice


def test_people_who_go_where_there_is_no_page_get_one_that_says_so(seen: Seen) -> None:
    answer = seen.admin.get("/nowhere/<b>", accept=HTML)
    assert answer.status == 404
    assert "There is no page at /nowhere/&lt;b&gt;" in answer.body.decode()
    assert 'aria-label="Pages"' in answer.body.decode()
    # Without a session it says no more; programs get what they got.
    plain = ask(seen.port, "/nowhere", headers={"accept": HTML})
    assert (plain.status, "There is no page at /nowhere" in plain.body.decode()) == (404, True)
    assert 'aria-label="Pages"' not in plain.body.decode()
    for headers in ({}, {"accept": "*/*"}):
        program = ask(seen.port, "/nowhere", headers=headers)
        assert (program.status, program.body) == (404, b"Not Found")
    back = seen.admin.get("/do", accept=HTML)
    assert (back.status, back.headers["location"]) == (303, "/")
    assert ask(seen.port, "/do").status == 405


def test_what_is_done_twice_or_in_two_tabs_is_done_once_or_refused_in_words(seen: Seen) -> None:
    backups = [back_up(seen.stub, "one", {"a": b"%d" % each}) for each in range(2)]
    key = seen.admin.form_key()

    def do(action: str, backup: pb.Backup, **more: str) -> int:
        form = {"key": key, "action": action, "dataset": "one", "backup": backup.id, **more}
        return seen.admin.post("/do", form).status

    for _ in range(2):
        assert do("delete", backups[0]) == 303
    assert "1 deleted" in seen.says("/store") or "deleted" in seen.says("/dataset?name=one")
    for _ in range(2):
        assert do("undelete", backups[0]) == 303
    for _ in range(2):
        assert do("hold", backups[0], reason="case 1") == 303
    # The other tab still offers to delete what is held now.
    form = {"key": key, "action": "delete", "dataset": "one", "backup": backups[0].id}
    refused = seen.admin.post("/do", form)
    assert refused.status == 400
    assert "hold" in refused.body.decode()
    for _ in range(2):
        assert do("release", backups[0]) == 303
    # A tab of a session that has ended.
    seen.admin.post("/logout", {"key": key})
    answer = seen.admin.post("/do", form)
    assert (answer.status, answer.headers["location"]) == (303, "/login")
