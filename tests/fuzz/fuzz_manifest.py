"""Pages of manifests with any content that a fault, or a holder of the keys, can put into a tenant's chunk."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from blake3 import blake3
from fuzz_engine import Check, Target, mutate_bytes, mutate_msgpack
from staddle.chunking import content_id
from staddle_server.base.errors import BadRequest, Damaged
from staddle_server.base.types import (
    Attributes,
    ChunkRef,
    Content,
    Entry,
    EntryType,
    Hole,
    Profile,
    Root,
    Xattr,
    sort_key,
)
from staddle_server.manifest.compare import compare
from staddle_server.manifest.content import (
    ContentBuilder,
    chunks_of,
    load_attributes,
    store_attributes,
)
from staddle_server.manifest.entries import check_whole
from staddle_server.manifest.pages import (
    PageRules,
    decode_attributes,
    decode_index,
    decode_leaf,
    encode_attributes,
    encode_index,
    encode_leaf,
)
from staddle_server.manifest.read import Gap, Manifest, entries_of
from staddle_server.manifest.tree import TreeBuilder

PAGE_KEY = bytes(range(32))
TINY = PageRules(leaf_bits=1, level_bits=1, page_bytes=600, list_bits=2, list_items=5)


class Pages:
    """Pages in memory."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}

    def write(self, data: bytes) -> bytes:
        digest = blake3(data).digest()
        self.stored[digest] = bytes(data)
        return digest

    def read(self, ref_digest: bytes) -> bytes:
        data = self.stored.get(ref_digest)
        if data is None:
            raise Damaged("the page is missing")
        return data


def refs(count: int) -> list[ChunkRef]:
    return [ChunkRef(1000 + at, blake3(b"%d" % at).digest()) for at in range(count)]


def content(pages: Pages, count: int) -> Content:
    builder = ContentBuilder(pages, Profile.CONTENT_DEFINED, TINY)
    for ref in refs(count):
        builder.add(ref)
    return builder.finish()


def entries(pages: Pages) -> list[Entry]:
    """Some of every kind."""
    large = Attributes(
        tuple(Xattr(b"user.%03d" % at, bytes(40)) for at in range(80)), (Hole(5, 5), Hole(50, 1))
    )
    made = [
        Entry(b"", EntryType.DIRECTORY, mode=0o755),
        Entry(b"dev", EntryType.BLOCK_DEVICE, device=(8, 1)),
        Entry(
            b"dir",
            EntryType.DIRECTORY,
            mode=0o700,
            uid=0,
            gid=2**32 - 1,
            mtime_ns=-1,
            ctime_ns=1,
            inode=2**64 - 1,
        ),
        Entry(
            b"dir/big",
            content=content(pages, 60),
            owner="root",
            group="größe",
            file_digest=bytes(32),
            flags=4,
        ),
        Entry(b"dir/holes", content=content(pages, 3), attributes=Attributes((), (Hole(0, 1), Hole(7, 900)))),
        store_attributes(Entry(b"dir/xattrs", content=content(pages, 2), attributes=large), pages),
        Entry(b"empty", content=Content(0, content_id([])), link_group=b"7@"),
        Entry(b"link", EntryType.SYMLINK, link_target=b"../out"),
        Entry(b"pipe\xff", EntryType.FIFO, flags=1),
    ]
    made += [Entry(b"z/%04d" % at, content=content(pages, at % 4), mtime_ns=at) for at in range(30)]
    return made


# ---------------------------------------------------------------------- one page

LEAF, RUN, INDEX, ATTRIBUTES = 0, 1, 2, 3


def _page_seeds() -> list[bytes]:
    pages = Pages()
    some = entries(pages)
    removed = [
        Entry(b"a", EntryType.REMOVED),
        Entry(b"a", EntryType.DIRECTORY),
        Entry(b"b", EntryType.REMOVED),
    ]
    builder = TreeBuilder(pages, PAGE_KEY, TINY)
    for entry in some:
        builder.add(entry)
    root = builder.finish()
    level, children = decode_index(pages.read(root.digest))
    attributes = Attributes(
        (Xattr(b"user.a", b"1"), Xattr(b"user.b", bytes(300))), (Hole(0, 4096), Hole(9000, 1))
    )
    return [
        bytes([LEAF]) + encode_leaf(some[:9])[1:],
        bytes([LEAF]) + encode_leaf(some[9:12])[1:],
        bytes([RUN]) + encode_leaf(removed)[1:],
        bytes([INDEX]) + encode_index(level, children)[1:],
        bytes([ATTRIBUTES]) + encode_attributes(attributes)[1:],
    ]


@contextmanager
def _page() -> Iterator[Check]:
    yield check_page


def check_page(data: bytes) -> str:
    """Refused as damage, or values that keep every rule and are the same when they are written again."""
    which, body = (data[:1] or b"\0")[0] % 4, data[1:]
    try:
        if which in (LEAF, RUN):
            return _leaf(b"\x01" + body, run=which == RUN)
        if which == INDEX:
            level, children = decode_index(b"\x02" + body)
            assert [sort_key(child.last) for child in children] == sorted(
                {sort_key(c.last) for c in children}
            )
            assert decode_index(encode_index(level, children)) == (level, children)
            return f"an index page of level {level}"
        attributes = decode_attributes(b"\x04" + body)
        assert decode_attributes(encode_attributes(attributes)) == attributes
        return "attributes"
    except Damaged as error:
        return error.message
    except BadRequest as error:
        return f"attributes that are too large: {error.message}"


def _leaf(data: bytes, *, run: bool) -> str:
    leaf = decode_leaf(data, run=run)
    found = list(leaf)
    for entry in found:
        check_whole(entry)
        assert run or entry.type is not EntryType.REMOVED
    keys = [sort_key(entry.path) for entry in found]
    assert keys == sorted(keys)
    assert run or len(set(keys)) == len(keys)
    assert [leaf[at] for at in range(len(leaf))] == found
    assert encode_leaf(found) == data
    return f"a leaf of {len(found)}"


def _mutate_page(chance: random.Random, data: bytes) -> bytes:
    return data[:1] + mutate_msgpack(chance, data[1:]) if data else mutate_bytes(chance, data)


# ---------------------------------------------------------------------- a tree with any page replaced


def _tree() -> tuple[Pages, Root, list[bytes]]:
    pages = Pages()
    builder = TreeBuilder(pages, PAGE_KEY, TINY)
    for entry in entries(pages):
        builder.add(entry)
    root = builder.finish()
    return pages, root, list(pages.stored)


@contextmanager
def _trees() -> Iterator[Check]:
    pages, root, digests = _tree()

    def check(data: bytes) -> str:
        """The page that the input numbers has the bytes that the input gives; all that reads manifests reads it."""
        number = int.from_bytes(data[:2], "little") % len(digests)
        changed = Pages()
        changed.stored = {**pages.stored, digests[number]: data[2:]}
        outcomes = {
            "walk": lambda: _drain(Manifest(root, changed).walk()),
            "children": lambda: _drain(Manifest(root, changed).children(b"dir")),
            "after": lambda: _drain(Manifest(root, changed).walk(b"z", after=b"z/0007")),
            "find": lambda: str(Manifest(root, changed).find(b"dir/big") is not None),
            "run": lambda: _drain(entries_of(root, changed)),
            "compare": lambda: _drain(compare(root, root, changed, after=None)),
            "content": lambda: _contents(root, changed),
        }
        said = []
        for name, work in outcomes.items():
            try:
                said.append(f"{name} {work()}")
            except Damaged as error:
                said.append(f"{name} {error.message}")
        return "; ".join(said)

    yield check


def _drain(items: Iterable[object]) -> str:
    """Reads all of it: a page that was changed never makes a listing that does not end."""
    found = list(islice(items, 10_001))
    assert len(found) <= 10_000, "a listing that does not end"
    gaps = [each for each in found if isinstance(each, Gap)]
    paths = [each.path for each in found if isinstance(each, Entry)]
    assert [sort_key(path) for path in paths] == sorted(map(sort_key, paths)), "a listing out of order"
    return f"with {len(gaps)} gaps {' '.join(sorted({gap.message for gap in gaps}))}"


def _contents(root: Root, source: Pages) -> str:
    said = []
    for entry in Manifest(root, source).walk():
        if isinstance(entry, Gap):
            continue
        try:
            whole = load_attributes(entry, source)
            check_whole(whole)
            if whole.content is not None:
                total = 0
                for offset, ref in islice(chunks_of(whole.content, source), 10_000):
                    assert offset == total
                    total += ref.length
                assert total == whole.content.size
        except Damaged as error:
            said.append(error.message)
    return " ".join(sorted(set(said)))


def _tree_seeds() -> list[bytes]:
    pages, _, digests = _tree()
    return [number.to_bytes(2, "little") + pages.stored[digest] for number, digest in enumerate(digests)]


def _mutate_tree(chance: random.Random, data: bytes) -> bytes:
    if chance.random() < 0.05:
        return mutate_bytes(chance, data)
    return data[:3] + (mutate_msgpack if data[2:3] != b"\x03" else mutate_bytes)(chance, data[3:])


TARGETS = [
    Target("page", _page, _page_seeds, _mutate_page, short_runs=2000),
    Target("manifest", _trees, _tree_seeds, _mutate_tree, short_runs=250),
]
