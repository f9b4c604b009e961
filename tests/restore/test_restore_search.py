"""Searching a backup for names, and all backups for the versions of a path: complete, bounded, and continued."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import Running
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import BadRequest, NotFound
from staddle_server.base.types import Entry, EntryType, Role, TokenRole, sort_key
from staddle_server.catalog import Principal
from staddle_server.manifest.read import Gap, Manifest
from staddle_server.restore.browse import Selector
from staddle_server.restore.search import GAPS_MAX, Limit, Matches, NamePattern, PathHistory, search
from test_restore_damage import a_leaf, damage
from thin import back_up, begin, finish, messages

PATHS = [
    b"README",
    b"etc/nginx/nginx.conf",
    b"etc/nginx/sites/a.conf",
    b"etc/nginx/sites/B.CONF",
    b"etc/nginx-old/nginx.conf",
    b"etc/hosts",
    b"home/anna/[odd].txt",
    b"home/anna/new\nline",
    b"home/anna/\xff\xfe.txt",
    b"home/anna/r\xc3\xa9sum\xc3\xa9.pdf",
    b"home/etc/hosts",
]
ALL = sorted(
    {b"/".join(each.split(b"/")[:n]) for each in PATHS for n in range(1, 9)}, key=lambda p: p.split(b"/")
)
PATTERNS = [
    (
        "conf",
        [
            b"etc/nginx/nginx.conf",
            b"etc/nginx/sites/a.conf",
            b"etc/nginx/sites/B.CONF",
            b"etc/nginx-old/nginx.conf",
        ],
    ),
    ("*.conf", [b"etc/nginx/nginx.conf", b"etc/nginx/sites/a.conf", b"etc/nginx-old/nginx.conf"]),
    ("RÉSUMÉ", [b"home/anna/r\xc3\xa9sum\xc3\xa9.pdf"]),
    ("[[]odd*", [b"home/anna/[odd].txt"]),
    ("new?line", [b"home/anna/new\nline"]),
    ("hosts", [b"etc/hosts", b"home/etc/hosts"]),
    ("etc/hosts", [b"etc/hosts"]),
    ("/etc/hosts/", [b"etc/hosts"]),
    ("**/hosts", [b"etc/hosts", b"home/etc/hosts"]),
    ("etc/nginx*", [b"etc/nginx", b"etc/nginx-old"]),
    ("etc/nginx/*", [b"etc/nginx/nginx.conf", b"etc/nginx/sites"]),
    ("etc/nginx/**/*.conf", [b"etc/nginx/nginx.conf", b"etc/nginx/sites/a.conf"]),
    ("etc/nginx/sites/**", [b"etc/nginx/sites", b"etc/nginx/sites/a.conf", b"etc/nginx/sites/B.CONF"]),
    ("etc/nginx-old/**/**", [b"etc/nginx-old", b"etc/nginx-old/nginx.conf"]),
    ("README/**", [b"README"]),
    ("e*/nginx.conf", []),
    ("e*/*/nginx.conf", [b"etc/nginx/nginx.conf", b"etc/nginx-old/nginx.conf"]),
    ("R*/", [b"README"]),
    ("**/s*/**", [b"etc/nginx/sites", b"etc/nginx/sites/a.conf", b"etc/nginx/sites/B.CONF"]),
    ("no", []),
]


class Searcher:
    """Somebody who searches a dataset."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.reads = running.service._reads()
        self.principal = Principal(running.tenant, b"", "reader", TokenRole.READER)

    def search(
        self, text: str, below: bytes = b"", after: bytes | None = None, most: int = 100, steps: int = 10**6
    ) -> Matches:
        backup = self.reads.pick(self.principal, "one", Selector())
        limit = Limit(steps, 1e6, lambda: 0.0)
        pattern = NamePattern(text)
        return self.reads.search(self.principal, backup, below, pattern, after=after, most=most, limit=limit)

    def versions(
        self, path: bytes, before: int | None = None, most: int = 100, steps: int = 10**6
    ) -> PathHistory:
        limit = Limit(steps, 1e6, lambda: 0.0)
        return self.reads.versions(self.principal, "one", path, before_number=before, most=most, limit=limit)


@pytest.fixture
def searcher(running: Running) -> Searcher:
    return Searcher(running)


def put(running: Running, entries: list[pb.Entry]) -> pb.Backup:
    parts = [begin("one"), *(sv.BackupPart(entry=each) for each in entries)]
    size = sum(len(each.data) for each in entries)
    return running.stub().Backup(messages([*parts, finish(len(entries), size)])).backup


def found_in_steps(searcher: Searcher, text: str, most: int) -> Iterator[bytes]:
    after = None
    for _ in range(100):
        found = searcher.search(text, after=after, most=most)
        assert len(found.entries) <= most
        yield from (each.path for each in found.entries)
        after = found.stopped_after
        if after is None:
            return
    raise AssertionError("it does not end")


def test_a_search_finds_what_its_pattern_says_at_once_and_in_steps(searcher: Searcher) -> None:
    put(searcher.running, [pb.Entry(raw_path=each, data=b"x") for each in PATHS])
    for text, expected in PATTERNS:
        found = searcher.search(text)
        assert sorted(each.path for each in found.entries) == sorted(expected), text
        assert sorted(each for each in ALL if NamePattern(text).matches(each)) == sorted(expected), text
        assert found.stopped_after is None
        for most in (1, 2):
            assert sorted(found_in_steps(searcher, text, most)) == sorted(expected), text
    below = searcher.search("hosts", b"home")
    assert [each.path for each in below.entries] == [b"home/etc/hosts"]
    assert [each.path for each in searcher.search("*/hosts", b"home").entries] == [b"home/etc/hosts"]
    assert searcher.search("hosts", b"etc/hosts").entries == []
    with pytest.raises(NotFound):
        searcher.search("hosts", b"none")


def test_a_search_by_path_reads_only_where_paths_begin_so(searcher: Searcher) -> None:
    names = [f"d{each:02}/f{number:03}" for each in range(20) for number in range(50)]
    back_up(searcher.running.stub(), "one", dict.fromkeys(names, b"x"))
    assert searcher.search("f001").looked_at == 20 * 51
    assert searcher.search("d07/f0*").looked_at == 50
    assert searcher.search("d07/f04?").looked_at == 10
    assert searcher.search("d1*/f001").looked_at == 10 * 51
    assert searcher.search("d07/f001").looked_at == 1
    found = searcher.search("d07/f001").entries
    assert [each.path for each in found] == [b"d07/f001"]


class Walked:
    """A manifest of so many files and two in a directory, which counts what it yields."""

    def __init__(self, files: int) -> None:
        self.paths = [b"m%06d" % number for number in range(files)] + [b"zzz", b"zzz/a", b"zzz/b", b"zzzz"]
        self.yielded = 0

    def find(self, path: bytes) -> Entry | None:
        return Entry(path=path, type=EntryType.FILE) if path in self.paths else None

    def walk(self, _below: bytes, *, after: bytes | None) -> Iterator[Entry]:
        for path in self.paths:
            if after is None or sort_key(path) > sort_key(after):
                self.yielded += 1
                yield Entry(path=path, type=EntryType.FILE)


@pytest.mark.parametrize("after", [b"\0", b"m", b"m000007", b"zz", b"zzz"])
def test_a_search_walks_only_what_it_counts_wherever_it_is_told_to_continue(after: bytes) -> None:
    manifest = Walked(1000)
    limit = Limit(100, 1e6, lambda: 0.0)
    found = search(cast("Manifest", manifest), b"", NamePattern("zzz/*"), after=after, most=10, limit=limit)
    assert [each.path for each in found.entries] == [b"zzz/a", b"zzz/b"]
    assert found.stopped_after is None
    assert manifest.yielded <= found.looked_at + 1
    limit = Limit(100, 1e6, lambda: 0.0)
    only = search(cast("Manifest", manifest), b"", NamePattern("zzz/a"), after=after, most=10, limit=limit)
    assert [each.path for each in only.entries] == [b"zzz/a"]


def test_parts_that_cannot_be_read_count_against_the_limit() -> None:
    class Unreadable(Walked):
        def walk(self, _below: bytes, *, after: bytes | None) -> Iterator[Gap]:
            for path in self.paths:
                if after is None or path > after:
                    self.yielded += 1
                    yield Gap(None, path, f"{path!r} is unreadable")

    manifest, after, parts = Unreadable(1000), None, 0
    while parts == 0 or after is not None:
        limit = Limit(100, 1e6, lambda: 0.0)
        found = search(cast("Manifest", manifest), b"", NamePattern("*"), after=after, most=10, limit=limit)
        assert (found.looked_at, found.entries) == (0, [])
        after, parts = found.stopped_after, parts + 1
        assert after is None or limit.steps <= 128
        assert len(found.gaps) == GAPS_MAX
        assert found.has_more_gaps
    assert parts == -(-1004 // 128)


def test_a_search_stops_at_its_limits_and_says_where(searcher: Searcher) -> None:
    names = [f"f{number:04}" for number in range(1000)]
    back_up(searcher.running.stub(), "one", dict.fromkeys(names, b"x"))
    found = searcher.search("f*9", steps=100)
    assert 100 <= found.looked_at < 200
    assert found.stopped_after == names[found.looked_at - 1].encode()
    again = searcher.search("f*9", after=found.stopped_after)
    paths = [each.path.decode() for each in [*found.entries, *again.entries]]
    assert paths == fnmatch.filter(names, "f*9")
    # A clock that is over at once still lets a search get on.
    times = itertools.count()
    backup = searcher.reads.pick(searcher.principal, "one", Selector())
    limit = Limit(10**6, 0.5, lambda: float(next(times)))
    hasty = searcher.reads.search(
        searcher.principal, backup, b"", NamePattern("f*"), after=None, most=10**6, limit=limit
    )
    assert 0 < hasty.looked_at < 200
    assert hasty.stopped_after is not None


def test_what_is_searched_for_has_a_length(searcher: Searcher) -> None:
    for bad in ("", "/", "///", "x" * 1025):
        with pytest.raises(BadRequest):
            NamePattern(bad)


@given(text=st.text(min_size=1, max_size=30), path=st.lists(st.binary(min_size=1, max_size=8), min_size=1))
def test_any_pattern_is_one(text: str, path: list[bytes]) -> None:
    if text.strip("/"):
        NamePattern(text).matches(b"/".join(path))


@given(
    names=st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=5),
    parts=st.lists(st.sampled_from(["a", "b", "*", "?", "**", "a*"]), min_size=2, max_size=5),
)
def test_a_pattern_by_path_fits_as_its_definition_says(names: list[str], parts: list[str]) -> None:
    def fits(patterns: list[str], rest: list[str]) -> bool:
        if not patterns:
            return not rest
        if patterns[0] == "**":
            return any(fits(patterns[1:], rest[number:]) for number in range(len(rest) + 1))
        return bool(rest) and fnmatch.fnmatchcase(rest[0], patterns[0]) and fits(patterns[1:], rest[1:])

    pattern, path = NamePattern("/".join(parts)), "/".join(names).encode()
    assert pattern.matches(path) == fits(parts, names)
    assert path.startswith(pattern.prefix.rstrip(b"/")) or not pattern.matches(path)


def test_versions_span_all_backups_and_say_where_each_begins_and_ends(searcher: Searcher) -> None:
    def file(data: bytes, mode: int = 0o644) -> list[pb.Entry]:
        return [pb.Entry(path="a", data=data, mode=mode), pb.Entry(path="b", data=b"b")]

    states = [
        file(b"1"),
        file(b"1"),
        file(b"22"),
        file(b"22", 0o600),
        file(b"1"),
        [pb.Entry(path="b", data=b"b")],
    ]
    for each in states:
        put(searcher.running, each)
    history = searcher.versions(b"a")
    spans = [(each.oldest.number, each.newest.number, each.backups) for each in history.versions]
    assert spans == [(6, 6, 1), (5, 5, 1), (4, 4, 1), (3, 3, 1), (1, 2, 2)]
    assert [each.entry is None for each in history.versions] == [True, False, False, False, False]
    assert (history.looked_at, history.stopped_before, history.older) == (6, None, None)
    # In parts, nothing is told twice or left out, wherever a part ends.
    for limits in ({"most": 1}, {"most": 2}, {"steps": 2}, {"steps": 4}):
        told, before = [], None
        for _ in range(20):
            part = searcher.versions(b"a", before, **limits)
            told += [(each.oldest.number, each.newest.number) for each in part.versions]
            if part.older is not None:
                assert part.older.newest.number == part.versions[-1].oldest.number - 1
            before = part.stopped_before
            if before is None:
                break
        assert told == [each[:2] for each in spans], limits
    # One version that is longer than a part comes in pieces, which leave nothing out.
    pieces, before = [], None
    for _ in range(3):
        part = searcher.versions(b"b", before, steps=2)
        pieces += [(each.oldest.number, each.newest.number) for each in part.versions]
        before = part.stopped_before
    assert (pieces, before) == ([(5, 6), (3, 4), (1, 2)], None)
    assert [each.entry for each in searcher.versions(b"none").versions] == [None]


def test_what_is_damaged_is_named_and_the_rest_is_searched(searcher: Searcher) -> None:
    names = [f"d{each:02}/f{number:03}" for each in range(30) for number in range(250)]
    made = back_up(searcher.running.stub(), "one", dict.fromkeys(names, b"x"))
    damage(searcher.running, Role.MANIFEST, a_leaf(searcher.running, made, b"d15/f050"))
    found = searcher.search("f0?0", most=1000)
    assert found.gaps
    assert found.stopped_after is None
    assert 0 < len(found.entries) < 300
    assert set(found_in_steps(searcher, "f0?0", 7)) == {each.path for each in found.entries}
    for hidden in ("d15/f050", "d15/f050*", "d15/f050/*"):
        found = searcher.search(hidden)
        assert (found.entries, len(found.gaps), found.has_more_gaps) == ([], 1, False), hidden
    assert searcher.versions(b"d15/f050").versions[0].damage
    assert searcher.versions(b"d00/f000").versions[0].entry is not None
