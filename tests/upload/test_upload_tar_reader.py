"""Reading tars: every common format comes out alike, and nothing but a whole, sound tar comes to its end."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress

import pytest
import tars
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from staddle_server.base.errors import BadRequest
from staddle_server.base.types import EntryType, Hole, Xattr
from staddle_server.store.compressed_streams import Pieces
from staddle_server.upload import tar_reader
from staddle_server.upload.tar_header import PAX_BYTES_MAX, PAX_RECORDS_MAX, TarError
from staddle_server.upload.tar_reader import EXTENSIONS_MAX, PADDING_BYTES_MAX, Member, TarReader
from staddle_server.upload.tar_sparse import PIECES_MAX
from tars import END, GNU, header, member, pax, sparse

MIB = 1 << 20


def read(data: bytes, step: int = 4096) -> list[tuple[Member, bytes]]:
    """The members of a tar that arrives in pieces of this size, with their bytes; holes as zeros."""
    reader = TarReader(Pieces(data[at : at + step] for at in range(0, len(data), step)))
    return [
        (each, b"".join(bytes(piece) if isinstance(piece, int) else piece for piece in reader.data()))
        for each in reader.members()
    ]


def members(data: bytes) -> list[Member]:
    return [each for each, _ in read(data)]


def refused(data: bytes) -> TarError:
    with pytest.raises(TarError) as caught:
        read(data)
    assert caught.value.facts["field"] == "body"
    return caught.value


# ---------------------------------------------------------------------- what others write

NAMES = st.lists(
    st.binary(min_size=1, max_size=60).filter(lambda b: not {0, 0x2F} & set(b) and b not in {b".", b".."}),
    min_size=1,
    max_size=5,
).map(b"/".join)
FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    files=st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6),
    form=st.sampled_from(sorted(FORMATS)),
    step=st.integers(1, 2000),
    numbers=st.tuples(st.integers(-(2**31), 2**33), st.integers(0, 2**32 - 1), st.integers(0, 0o7777)),
)
def test_what_python_writes_is_read_alike(files, form, step, numbers) -> None:
    mtime, uid, mode = numbers
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=FORMATS[form], errors="surrogateescape") as opened:
        for name, data in files.items():
            info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            info.size, info.mtime, info.uid, info.mode = len(data), mtime, uid, mode
            opened.addfile(info, io.BytesIO(data))
    found = read(made.getvalue(), step)
    assert {each.path: data for each, data in found} == files
    for each, data in found:
        assert (each.type, each.size, each.mode, each.uid) == (EntryType.FILE, len(data), mode, uid)
        assert each.mtime_ns == mtime * 10**9


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=8),
    tail=st.integers(0, 50),
    form=st.sampled_from(["0.0", "0.1", "1.0", "old"]),
)
def test_every_format_of_sparse_files_has_its_data_and_its_holes(pieces, tail, form) -> None:
    at, where, whole = 0, [], bytearray()
    for number, (hole, length) in enumerate(pieces):
        at += hole
        where.append((at, length))
        whole += bytes(hole) + bytes([number + 1]) * length
        at += length
    whole += bytes(tail)
    data = b"".join(bytes(whole[start : start + length]) for start, length in where)
    found = read(sparse_in(form, len(whole), where, data) + member(b"z", b"behind") + END)
    assert [content for _, content in found] == [bytes(whole), b"behind"]
    (first, _), _ = found
    assert (first.path, first.size) == (b"dir/s", len(whole))
    assert first.sparse is not None
    assert sum(hole.length for hole in first.sparse.holes) == len(whole) - len(data)


def sparse_in(form: str, size: int, pieces: list[tuple[int, int]], data: bytes) -> bytes:
    if form == "1.0":
        return sparse(size, pieces, data, b"dir/s")
    if form == "old":
        return old_sparse(size, pieces, data)
    keys = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(pieces))]
    if form == "0.0":
        for offset, length in pieces:
            keys += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
        return pax(keys) + member(b"dir/s", data)
    numbers = b",".join(b"%d,%d" % piece for piece in pieces)
    keys += [(b"GNU.sparse.name", b"dir/s"), (b"GNU.sparse.map", numbers)]
    return pax(keys) + member(b"GNUSparseFile.1/s", data)


def old_sparse(size: int, pieces: list[tuple[int, int]], data: bytes) -> bytes:
    def numbers(some: list[tuple[int, int]]) -> bytes:
        return b"".join(tars.octal(each, 12) for piece in some for each in piece)

    block = bytearray(header(b"dir/s", len(data), b"S", magic=GNU))
    block[345:500] = bytes(155)
    block[386 : 386 + 24 * len(pieces[:4])] = numbers(pieces[:4])
    block[482] = len(pieces) > 4
    block[483:495] = tars.octal(size, 12)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    made = bytes(block)
    if len(pieces) > 4:
        made += numbers(pieces[4:]).ljust(512, b"\0")
    return made + tars.padded(data)


def test_every_kind_of_member_is_read() -> None:
    found = members(
        member(b"./", kind=b"5", mode=0o755)
        + member(b"./d/", kind=b"5", mode=0o700)
        + member(b"f", b"data", mtime=7, uid=9)
        + header(b"l", kind=b"2", linkname=b"../anywhere")
        + header(b"hard", kind=b"1", linkname=b"./f")
        + header(b"p", kind=b"6")
        + header(b"c", kind=b"3", device=(1, 3))
        + header(b"b", kind=b"4", device=(8, 300))
        + member(b"old/", kind=b"\0")
        + member(b"contiguous", b"x", kind=b"7")
        + member(b"a label", kind=b"V", magic=GNU)
        + member(b"g", b"Yf\0", kind=b"D", magic=GNU)
        + END
    )
    assert [(each.path, each.type.name) for each in found] == [
        (b"", "DIRECTORY"),
        (b"d", "DIRECTORY"),
        (b"f", "FILE"),
        (b"l", "SYMLINK"),
        (b"hard", "FILE"),
        (b"p", "FIFO"),
        (b"c", "CHAR_DEVICE"),
        (b"b", "BLOCK_DEVICE"),
        (b"old", "DIRECTORY"),
        (b"contiguous", "FILE"),
        (b"g", "DIRECTORY"),
    ]
    by = {each.path: each for each in found}
    assert (by[b"f"].mtime_ns, by[b"f"].uid, by[b"l"].target) == (7 * 10**9, 9, b"../anywhere")
    assert (by[b"hard"].link, by[b"c"].device, by[b"b"].device) == (b"f", (1, 3), (8, 300))
    assert by[b"g"].lists_names


def test_extended_headers_say_what_a_header_cannot() -> None:
    said = [
        (b"path", b"\xff\n/long" * 50),
        (b"mtime", b"-1.5"),
        (b"uid", b"4294967295"),
        (b"gid", b"-2"),
        (b"uname", "jürgen".encode()),
        (b"gname", b"\xff"),
        (b"SCHILY.xattr.user.no%3Dte", b"bin\0\n=x"),
        (b"SCHILY.xattr.user.empty", b""),
        (b"LIBARCHIVE.xattr.user.%61", b"AAE"),
        (b"comment", b"anything"),
    ]
    (found,) = members(pax(said) + member(b"short", b"x") + END)
    assert found.path == b"\xff\n/long" * 50
    assert (found.mtime_ns, found.uid, found.gid) == (-1_500_000_000, 2**32 - 1, None)
    assert (found.owner, found.group) == ("jürgen", "")
    assert found.xattrs == (
        Xattr(b"user.a", b"\0\1"),
        Xattr(b"user.empty", b""),
        Xattr(b"user.no=te", b"bin\0\n=x"),
    )


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (b"0", 0),
        (b"1.000000001", 1_000_000_001),
        (b"1.0000000019999", 1_000_000_001),
        (b"12.", 12 * 10**9),
        (b"-0.000000001", -1),
        (b"99999999999999999999", 2**63 - 1),
        (b"-99999999999999999999", -(2**63)),
    ],
)
def test_times_have_nanoseconds_and_the_nearest_that_fits(text: bytes, ns: int) -> None:
    (found,) = members(pax([(b"mtime", text)]) + member(b"f") + END)
    assert found.mtime_ns == ns


def test_global_headers_hold_until_the_next_and_an_empty_value_takes_back() -> None:
    found = members(
        pax([(b"uname", b"all"), (b"path", b"never"), (b"comment", b"1234")], b"g")
        + member(b"a")
        + pax([(b"uname", b"one")])
        + member(b"b")
        + pax([(b"uname", b"")])
        + member(b"c")
        + pax([(b"uname", b"new")], b"g")
        + member(b"d")
        + END
    )
    assert [(each.path, each.owner) for each in found] == [
        (b"a", "all"),
        (b"b", "one"),
        (b"c", ""),
        (b"d", "new"),
    ]


def test_binary_numbers_of_gnu_are_read() -> None:
    size = b"\x80" + (3).to_bytes(11, "big")
    mtime = (-5).to_bytes(12, "big", signed=True)
    data = header(b"f", size, magic=GNU, mtime=mtime, uid=b"\x80" + (2**31).to_bytes(7, "big"))
    (found,) = members(data + tars.padded(b"abc") + END)
    assert (found.size, found.mtime_ns, found.uid) == (3, -5 * 10**9, 2**31)


def test_a_prefix_belongs_to_the_name_of_a_posix_header_alone() -> None:
    found = members(member(b"f", prefix=b"a/b") + member(b"g", prefix=b"0123", magic=GNU) + END)
    assert [each.path for each in found] == [b"a/b/f", b"g"]


# ---------------------------------------------------------------------- an end that is none

WHOLE = (
    pax([(b"mtime", b"1.5")])
    + member(b"f", b"x" * 700)
    + sparse(2_000, [(1_000, 512)], b"y" * 512)
    + member(b"d", kind=b"5")
    + END
)


def test_a_tar_that_is_cut_short_anywhere_is_refused() -> None:
    assert len(read(WHOLE)) == 3
    for length in range(0, len(WHOLE), 7):
        assert "cut short" in refused(WHOLE[:length]).message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (member(b"f") + bytes(512) + member(b"g") + END, "lone block"),
        (member(b"f") + END + member(b"g") + END, "more follows"),
        (member(b"f") + END + b"\n", "more follows"),
        (END + bytes(PADDING_BYTES_MAX + 1), "zeros follow"),
        (b"<html>" * 200, "not a tar"),
        (b"x" * 512 + END, "not a tar"),
        (header(b"f", checksum=b"0000000\0"), "checksum"),
        (header(b"f", checksum=b"99999999"), "not octal"),
        (header(b"f", b"-0000000001\0"), "not octal"),
        (header(b"f", b"0_0_0\0"), "not octal"),
        (header(b"f", b"\xff" * 12), "out of range"),
        (header(b"f", b"\x80" + b"\xff" * 11), "out of range"),
        (pax([(b"size", b"9" * 20)]) + header(b"f"), "at most"),
        (pax([(b"size", b"9" * 5_000)]) + header(b"f"), "not a number"),
        (pax([(b"size", "٣".encode())]) + header(b"f"), "not a number"),
        (pax([(b"mtime", b"1e9")]) + header(b"f"), "not a time"),
        (pax([(b"path", b"f")]) + END, "no member after it"),
        (header(b"f", kind=b"Q") + END, "unknown"),
        (header(b"f", kind=b"M", magic=GNU) + END, "unknown"),
        (member(b"f", b"data", kind=b"1", linkname=b"g") + END, "has bytes"),
        (member(b"f/", b"data") + END, "has bytes"),
        (pax([(b"path", b"x")]) * (EXTENSIONS_MAX + 1) + member(b"f"), "describe one member"),
        (header(b"x", PAX_BYTES_MAX + 1, b"x"), "the limit"),
        (header(b"L", 1 << 20, b"L", magic=GNU), "the limit"),
        (member(b"x", b"5 a=\n" * (PAX_RECORDS_MAX + 1), b"x"), "records"),
        (member(b"x", b"5 a=\n" * (PAX_RECORDS_MAX // 2 + 1), b"x") * 2, "records"),
        (pax([(b"a", bytes(PAX_BYTES_MAX // 2))]) * 2 + member(b"f"), "for one member"),
        (pax([(b"LIBARCHIVE.xattr.a", b"!")]) + member(b"f"), "base64"),
    ],
)
def test_what_is_not_a_sound_tar_is_refused_with_words(data: bytes, words: str) -> None:
    assert words in refused(data).message


def test_extended_headers_are_weighed_before_they_are_read() -> None:
    first, second = pax([(b"a", bytes(3000))]), pax([(b"b", bytes(2000))])
    taken: list[int] = []

    def source() -> Iterator[bytes]:
        for at in range(0, len(first + second), 512):
            taken.append(at)
            yield (first + second)[at : at + 512]

    weighed: list[tuple[int, bool]] = []
    reader = TarReader(Pieces(source()))
    with suppress(TarError):
        list(reader.members(lambda size: weighed.append((size, taken[-1] < size))))
    assert weighed == [(3008, True), (5016, True)]


@pytest.mark.parametrize(
    "text",
    [
        b"x",
        b"9 a=\n",
        b"0 a=b\n",
        b"-5 a=b\n",
        b"6 a=bc",
        b"5 abc\n",
        b" 6 a=b\n",
        b"99999999999 a=b\n",
        b"3 =\n6 a=b\n5",
    ],
)
def test_a_damaged_record_is_refused(text: bytes) -> None:
    assert "record" in refused(member(b"x", text, b"x") + member(b"f") + END).message


@pytest.mark.parametrize("name", [b"/etc/passwd", b"../x", b"a/../../x", b"..", b"a/.."])
@pytest.mark.parametrize("form", ["header", "pax", "gnu", "link", "sparse"])
def test_a_name_that_leads_out_is_refused_wherever_it_stands(name: bytes, form: str) -> None:
    data = {
        "header": member(name),
        "pax": pax([(b"path", name)]) + member(b"f"),
        "gnu": member(b"L", name + b"\0", b"L", magic=GNU) + member(b"f", magic=GNU),
        "link": header(b"f", kind=b"1", linkname=name),
        "sparse": sparse(10, [], b"", name),
    }[form]
    error = refused(data + END)
    assert name.decode() in error.message
    assert error.facts["path"] == name.decode()


@pytest.mark.parametrize(
    ("size", "pieces", "data"),
    [
        (100, [(0, 60), (50, 10)], b"x" * 70),
        (100, [(50, 10), (0, 10)], b"x" * 20),
        (100, [(90, 20)], b"x" * 20),
        (100, [(0, 10)], b"x" * 20),
        (100, [(0, 20)], b"x" * 10),
        (2**60, [], b""),
        (2**47, [], b""),
        (10 * PIECES_MAX, [(at, 1) for at in range(0, 2 * PIECES_MAX + 2, 2)], b"x" * (PIECES_MAX + 1)),
        (10, [(0, 0)] * (PIECES_MAX + 1), b""),
    ],
)
def test_a_sparse_map_that_lies_is_refused(size: int, pieces: list[tuple[int, int]], data: bytes) -> None:
    refused(sparse(size, pieces, data) + END)


@pytest.mark.parametrize("text", [b"", b"x\n", b"1\n0\n", b"9" * 600, b"2\n0\n1\n", b"99999999999\n"])
def test_a_damaged_sparse_map_is_refused(text: bytes) -> None:
    keys = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"5")]
    refused(pax(keys) + member(b"s", text.ljust(512, b" ")) + END)


@pytest.mark.parametrize(
    "keys",
    [
        [(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")],
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")],
        [(b"GNU.sparse.size", b"5"), (b"GNU.sparse.map", b"1")],
        [(b"GNU.sparse.size", b"5"), (b"GNU.sparse.map", b"1," * 3 * PIECES_MAX)],
        [(b"GNU.sparse.size", b"x"), (b"GNU.sparse.map", b"")],
        [(b"GNU.sparse.size", b"5"), (b"GNU.sparse.offset", b"1")],
        [(b"GNU.sparse.size", b"5"), (b"GNU.sparse.offset", b"x")],
    ],
)
def test_sparse_records_that_make_no_map_are_refused(keys: list[tuple[bytes, bytes]]) -> None:
    refused(pax(keys) + member(b"s", b"12345") + END)


def test_holes_of_many_files_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_reader, "HOLES_BYTES_MAX", 10)
    read(sparse(5, [], b"") * 2 + END)
    refused(sparse(5, [], b"") * 3 + END)


def test_an_error_names_the_member_or_the_one_before_it() -> None:
    for data in (b"x" * 512, header(b"", b"x" * 12), pax([(b"path", b"g")]) + END, END[:-1]):
        assert refused(member(b"f") + data).facts["path"] == "f"
    for data in (header(b"g", 9), pax([(b"mtime", b"?")]) + header(b"g"), header(b"g", kind=b"Q")):
        assert refused(member(b"f") + data).facts["path"] == "g"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_in_a_tar_it_is_read_or_refused(data: st.DataObject) -> None:
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    with suppress(BadRequest):
        read(bytes(changed))


# ---------------------------------------------------------------------- memory


def endless(*parts: bytes, repeated: bytes, times: int) -> Iterator[bytes]:
    yield from parts
    for _ in range(times):
        yield repeated


@pytest.mark.parametrize(
    "pieces",
    [
        lambda: endless(repeated=member(b"f"), times=20_000),
        lambda: endless(header(b"f", 64 * MIB), repeated=bytes(MIB), times=64),
        lambda: endless(repeated=pax([(b"comment", b"x" * 100_000)]) + member(b"f"), times=300),
        lambda: endless(repeated=pax([(b"uname", b"x" * 1_000)], b"g") + member(b"f"), times=3_000),
    ],
    ids=["members", "one large file", "extended headers", "global headers"],
)
def test_a_long_tar_takes_no_more_memory_than_a_short_one(pieces) -> None:
    reader = TarReader(Pieces(pieces()))
    tracemalloc.start()
    try:
        with pytest.raises(TarError):
            for _ in reader.members():
                pass
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_a_hole_is_what_lies_between_the_data() -> None:
    (found,) = members(sparse(100, [(10, 20), (30, 5), (90, 0)], b"x" * 25) + END)
    assert found.sparse is not None
    assert found.sparse.holes == (Hole(0, 10), Hole(35, 65))
