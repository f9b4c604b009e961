"""A cache file: it reads back as written, damage is found, and the format matches the golden file.

Run as a program, writes the golden file: `python tests/client_fs/test_fs_cache_file.py`.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from extent import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from staddle._backup.cache.file import (
    ABSENT,
    CHILDREN_MAX,
    LOOK,
    ROW_BYTES,
    CacheBlock,
    CacheError,
    CacheReader,
    CacheWriter,
    is_cache_of,
    pack_row,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "client" / "cache.bin"
BACKUP_ID = bytes(range(16))
SCOPE = bytes(range(100, 132))
ROOT = pack_row(0x40, 2, 1_700_000_000_123_456_789, 1_700_000_001_000_000_000, 4096)
BLOCKS = [
    CacheBlock(
        b"",
        True,
        True,
        2,
        b"a\0b.txt",
        pack_row(0x40, 3, -1, 2**62, 4096) + pack_row(0x80, 2**64 - 1, 0, 1, 17),
        bytes(32) + bytes(range(1, 33)),
    ),
    CacheBlock(b"a", True, False, 1, b"\xff", pack_row(0xA0 | LOOK, 5, 6, 7, 8)),
    CacheBlock(b"", False, False, 1, b"z", pack_row(0x80 | ABSENT, 0, 0, 0, 0)),
]


@contextmanager
def opened(data: bytes = b"") -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.fileno()


def made(root: bytes, blocks: list[CacheBlock]) -> bytes:
    """The bytes of a file."""
    with opened() as descriptor:
        writer = CacheWriter(os.dup(descriptor), b"")
        writer.set_root(root)
        for block in blocks:
            writer.add(block)
        assert writer.finish(BACKUP_ID, SCOPE)
        writer.close()
        return os.pread(descriptor, 1 << 30, 0)


def is_good(data: bytes, backup_id: bytes = BACKUP_ID, scope: bytes = SCOPE) -> bool:
    with opened(data) as descriptor:
        return is_cache_of(descriptor, backup_id, scope)


def read(data: bytes, blocks: list[CacheBlock]) -> tuple[bytes, list[CacheBlock | None]]:
    """The root's row, and the blocks, read as a walk reads them."""
    with opened(data) as descriptor:
        reader = CacheReader(os.dup(descriptor))
        found = [reader.first(block.path) if block.first else reader.next(block.path) for block in blocks]
        root = reader.root
        reader.close()
    return root, found


names = st.binary(min_size=1, max_size=6).filter(lambda name: not set(name) & set(b"\0/"))
rows = st.builds(
    pack_row,
    st.integers(0, 255),
    st.integers(0, 2**64 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**64 - 1),
)


@st.composite
def trees(draw: st.DrawFn, path: bytes = b"", depth: int = 0) -> list[CacheBlock]:
    """The blocks of a directory and of those in it, in a scan's order."""
    children = sorted(draw(st.sets(names, max_size=5)))
    blocks: list[CacheBlock] = []
    while children:
        count = draw(st.integers(1, len(children)))
        some, children = children[:count], children[count:]
        data = b"".join(draw(rows) for _ in some)
        digests = draw(st.sampled_from([b"", bytes(range(32)) * count]))
        blocks.append(CacheBlock(path, not blocks, bool(children), count, b"\0".join(some), data, digests))
        for name in some:
            if depth < 3 and draw(st.booleans()):
                blocks.extend(draw(trees(path=path + b"/" + name if path else name, depth=depth + 1)))
    return blocks


@given(rows, trees())
def test_a_cache_file_reads_back_as_written(root: bytes, blocks: list[CacheBlock]) -> None:
    data = made(root, blocks)
    assert is_good(data)
    assert read(data, blocks) == (root, blocks)


@given(trees(), st.data())
def test_a_walk_that_skips_directories_still_finds_the_others(blocks: list[CacheBlock], data) -> None:
    left_out = {block.path for block in blocks if block.path and data.draw(st.booleans())}

    def is_left_out(path: bytes) -> bool:
        return any(path == each or path.startswith(each + b"/") for each in left_out)

    asked = [block for block in blocks if not is_left_out(block.path)]
    assert read(made(ROOT, blocks), asked)[1] == asked


@given(trees(), names)
def test_a_directory_unknown_to_the_base_does_not_affect_later_ones(
    blocks: list[CacheBlock], name: bytes
) -> None:
    known = {block.path for block in blocks}
    with opened(made(ROOT, blocks)) as descriptor:
        reader = CacheReader(os.dup(descriptor))
        found = []
        for block in blocks:
            found.append(reader.first(block.path) if block.first else reader.next(block.path))
            prefix, first = block.path + b"/" if block.path else b"", block.names.partition(b"\0")[0]
            new = prefix + first[:-1] + b"\x01" + name
            if new < prefix + first and new not in known:
                assert reader.first(new) is None
        reader.close()
    assert found == blocks


@settings(max_examples=examples(300))
@given(trees(), st.data())
def test_every_changed_byte_is_noticed(blocks: list[CacheBlock], data) -> None:
    good = made(ROOT, blocks)
    at = data.draw(st.integers(0, len(good) - 1))
    change = data.draw(st.integers(1, 255))
    assert not is_good(good[:at] + bytes([good[at] ^ change]) + good[at + 1 :])
    assert not is_good(good[:at])
    assert not is_good(good + b"\0")


def test_a_cache_belongs_to_one_backup_of_one_dataset() -> None:
    data = made(ROOT, BLOCKS)
    assert is_good(data)
    assert not is_good(data, backup_id=bytes(16))
    assert not is_good(data, scope=bytes(32))


@given(st.binary(max_size=400))
def test_arbitrary_bytes_after_a_valid_header_are_blocks_or_an_error(tail: bytes) -> None:
    head = made(ROOT, [])
    with opened(head + tail) as descriptor:
        reader = CacheReader(os.dup(descriptor))
        try:
            for path in (b"", b"a", b"a/b", b"z"):
                reader.first(path)
                reader.next(path)
        except CacheError:
            pass
        finally:
            reader.close()


def test_a_read_error_is_an_error_of_the_cache(tmp_path: Path) -> None:
    with opened(made(ROOT, BLOCKS)) as descriptor:
        own = os.dup(descriptor)
        reader = CacheReader(own)
        directory = os.open(tmp_path, os.O_RDONLY)
        os.dup2(directory, own)  # reading a directory fails, as a bad disk does
        os.close(directory)
        with pytest.raises(CacheError, match="cannot be read"):
            reader.first(b"")
        reader.close()


def test_rows_are_replaced_in_the_buffer_and_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [
        CacheBlock(b"%06d" % number, True, False, 1, b"x", pack_row(0x80, number, 0, 0, 0))
        for number in range(2_000)
    ]
    monkeypatch.setattr("staddle._backup.cache.file.PIECE_BYTES", 5_000)
    with opened() as descriptor:
        writer = CacheWriter(os.dup(descriptor), b"")
        writer.set_root(ROOT)
        places = [writer.add(block) for block in many]
        changed = [pack_row(0xA0, number, 1, 2, 3) for number in range(2_000)]
        for place, row in zip(places, changed, strict=True):
            writer.replace(place, row)
        writer.set_root(changed[0])
        assert writer.finish(BACKUP_ID, SCOPE)
        writer.close()
        data = os.pread(descriptor, 1 << 30, 0)
    expected = [block._replace(rows=row) for block, row in zip(many, changed, strict=True)]
    assert is_good(data)
    assert read(data, expected) == (changed[0], expected)


def test_a_file_closed_during_writing_is_not_written_any_more() -> None:
    with opened() as descriptor:
        writer = CacheWriter(os.dup(descriptor), b"")
        writer.close()
        writer.add(BLOCKS[0])
        assert not writer.finish(BACKUP_ID, SCOPE)
        writer.close()
        assert os.fstat(descriptor).st_size == 0


def test_the_golden_file_is_reproduced_and_read() -> None:
    stored = GOLDEN.read_bytes()
    assert made(ROOT, BLOCKS) == stored
    assert is_good(stored)
    assert read(stored, BLOCKS) == (ROOT, BLOCKS)


def test_blocks_and_rows_have_the_documented_sizes() -> None:
    assert ROW_BYTES == 33
    assert CHILDREN_MAX < 2**16
    assert stat.S_IFREG >> 8 == 0x80


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_bytes(made(ROOT, BLOCKS))
