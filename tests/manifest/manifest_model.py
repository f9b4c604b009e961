"""Shared by the tests of manifests: pages in memory, entries for trees, and a merge that is right by definition."""

import random
from collections.abc import Iterable, Sequence

import msgspec
from blake3 import blake3
from hypothesis import strategies as st
from staddle.chunking import content_id
from staddle_server.base import errors
from staddle_server.base.types import ChunkRef, Content, Entry, EntryType, Root, sort_key
from staddle_server.manifest.columns import columns_of
from staddle_server.manifest.entries import implied_directory, removal
from staddle_server.manifest.leaves import leaf_of
from staddle_server.manifest.pages import PageRules, leaf_page
from staddle_server.manifest.tree import TreeBuilder

PAGE_KEY = bytes(range(32))
TINY = PageRules(leaf_bits=1, level_bits=1, page_bytes=600, list_bits=2, list_items=5)
SMALL = PageRules(leaf_bits=3, level_bits=2)


class Pages:
    """Pages in memory that count reads and writes; some may be damaged."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.read_digests: list[bytes] = []
        self.written_digests: list[bytes] = []
        self.damaged: set[bytes] = set()

    def write(self, data: bytes) -> bytes:
        digest = blake3(data).digest()
        self.stored[digest] = bytes(data)
        self.written_digests.append(digest)
        return digest

    def read(self, ref_digest: bytes) -> bytes:
        self.read_digests.append(ref_digest)
        if ref_digest in self.damaged:
            raise errors.Damaged("This page is damaged.")
        return self.stored[ref_digest]

    def forget_counts(self) -> None:
        self.read_digests.clear()
        self.written_digests.clear()


def digest_of(text: str) -> bytes:
    return blake3(text.encode()).digest()


def small_content(number: int) -> Content:
    if number == 0:
        return Content(0, content_id([]))
    refs = tuple(ChunkRef(1000 + number, digest_of(f"chunk {number} {i}")) for i in range(1 + number % 3))
    return Content(sum(ref.length for ref in refs), content_id(refs), chunks=refs)


def file(path: bytes, number: int = 1, **more: object) -> Entry:
    return Entry(path, EntryType.FILE, content=small_content(number), **more)  # type: ignore[arg-type] # any field


def forged_leaf(entries: Sequence[Entry], **said: object) -> bytes:
    """A leaf that says what no writer says."""
    return leaf_page(msgspec.structs.replace(leaf_of(columns_of(entries)), **said))


def directory(path: bytes, mode: int | None = 0o755, *, flags: int = 0) -> Entry:
    return Entry(path, EntryType.DIRECTORY, mode=mode, flags=flags)


def build(entries: Iterable[Entry], pages: Pages, rules: PageRules = TINY, *, run: bool = False) -> Root:
    builder = TreeBuilder(pages, PAGE_KEY, rules, run=run)
    for entry in entries:
        builder.add(entry)
    return builder.finish()


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: sort_key(entry.path))


def ancestors(path: bytes) -> list[bytes]:
    """All paths above one, the root not among them."""
    parts = path.split(b"/")
    return [b"/".join(parts[:n]) for n in range(1, len(parts))]


def is_below(path: bytes, above: bytes) -> bool:
    return path != above and (not above or path.startswith(above + b"/"))


class ConflictError(Exception):
    """A path lies below something other than a directory."""


def merged_by_definition(base: Iterable[Entry], said: Sequence[Entry]) -> list[Entry]:
    """The full list that results from the base and the later changes, in that order."""
    records = [(-1, entry) for entry in base] + list(enumerate(said))
    alive: dict[bytes, Entry] = {}
    for age, entry in records:
        newer = said[age + 1 :]
        if entry.type == EntryType.REMOVED or any(other.path == entry.path for other in newer):
            continue
        if any(is_below(entry.path, o.path) and o.type != EntryType.DIRECTORY for o in newer):
            continue
        alive[entry.path] = entry
    for path in list(alive):
        for above in ancestors(path):
            if alive.setdefault(above, implied_directory(above)).type != EntryType.DIRECTORY:
                raise ConflictError
    return in_order(alive.values())


def full_list(said: Sequence[Entry]) -> list[Entry]:
    """The list that results from the changes, without paths below anything but a directory."""
    alive: dict[bytes, Entry] = {}
    for entry in said:
        if entry.type != EntryType.REMOVED:
            alive[entry.path] = entry
    kept = {
        path: entry
        for path, entry in alive.items()
        if all(alive.get(up, directory(up)).type == EntryType.DIRECTORY for up in ancestors(path))
    }
    return merged_by_definition([], list(kept.values()))


# Some sort differently by bytes than by components: "!" and "\x01" come before "/". Few, so that they collide.
COMPONENTS = [b"a", b"b", b"a!", b"a\x01", b"\xff"]
paths = st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=4).map(b"/".join)
entries = st.one_of(
    st.builds(file, paths, st.integers(0, 4), mode=st.sampled_from([0o600, 0o644])),
    st.builds(directory, paths | st.just(b""), st.sampled_from([0o700, 0o755])),
    st.builds(lambda path: Entry(path, EntryType.SYMLINK, link_target=b"there"), paths),
)
removals = st.builds(removal, paths | st.just(b""))


def grown_tree(count: int, seed: int) -> list[Entry]:
    """A full list of about so many entries, in directories of uneven size."""
    random_of_tree = random.Random(seed)
    made = [directory(b"")]
    directories = [b""]
    for number in range(count):
        parent = random_of_tree.choice(directories[-20:])
        path = (
            parent + b"/" if parent else b""
        ) + f"n{random_of_tree.randrange(10**6):06d}-{number}".encode()
        if number % 12 == 0 and path.count(b"/") < 8:
            directories.append(path)
            made.append(directory(path))
        else:
            made.append(file(path, number % 50, mtime_ns=number))
    return in_order(made)
