"""Tars from callers, plain and compressed: members within limits, or a documented error."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from contextlib import contextmanager

import tars
import zstandard
from fuzz_engine import Check, Target, documented, mutate_bytes
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import FILE_BYTES_MAX, ZERO_BYTES_MAX
from staddle_server.store.compressed_streams import Pieces, inflated
from staddle_server.upload.tar_reader import TarReader

FORMS = ("", "gzip", "zstd")
INFLATED_MAX = 8 << 20
"""A check stops here: what follows is bounded by what is sent, and by time alone."""


@contextmanager
def _tars() -> Iterator[Check]:
    def check(data: bytes) -> str:
        form, step = FORMS[data[0] % 3] if data else "", 1 + (data[1] if len(data) > 1 else 0) * 16
        body = data[2:]
        reader = TarReader(inflated(form, Pieces(body[at : at + step] for at in range(0, len(body), step))))
        total = 0
        kinds = set()
        try:
            for member in reader.members():
                parts = member.path.split(b"/")
                assert b".." not in parts
                assert not member.path.startswith(b"/")
                assert 0 <= member.size <= FILE_BYTES_MAX
                kinds.add(member.type.name)
                got = 0
                for piece in reader.data():
                    assert not isinstance(piece, int) or 0 < piece <= ZERO_BYTES_MAX
                    got += piece if isinstance(piece, int) else len(piece)
                    total += len(piece) if isinstance(piece, bytes) else 1_000
                    if total > INFLATED_MAX:
                        return "large"
                assert got == member.size
        except BadRequest as error:
            documented(error, "BAD_FIELD", "BAD_FRAME")
            return f"refused: {error.message}"
        return f"read: {','.join(sorted(kinds))}"

    yield check


def _seeds() -> list[bytes]:
    whole = (
        tars.member(b"./", kind=b"5", mode=0o755)
        + tars.pax([(b"path", b"n" * 200), (b"mtime", b"1.5"), (b"SCHILY.xattr.user.a", b"b")])
        + tars.member(b"f", b"data" * 300)
        + tars.member(b"L", b"m" * 150 + b"\0", b"L", magic=tars.GNU)
        + tars.header(b"l", kind=b"2", linkname=b"f", magic=tars.GNU)
        + tars.header(b"h", kind=b"1", linkname=b"f")
        + tars.header(b"c", kind=b"3", device=(1, 3))
        + tars.pax([(b"uname", b"u")], b"g")
    )
    mapped = tars.sparse(3_000, [(0, 512), (2_000, 512)], b"s" * 1_024)
    listed = tars.pax([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,1,8,1")]) + tars.member(
        b"s", b"12"
    )
    found = [whole + tars.END, mapped + tars.END, listed + whole + tars.END]
    packed = [b"\0\xff" + each for each in found]
    packed += [b"\1\x20" + gzip.compress(each, mtime=0) for each in found]
    return packed + [b"\2\x08" + zstandard.ZstdCompressor().compress(each) for each in found]


def _mutate(chance: random.Random, data: bytes) -> bytes:
    """Changed bytes; in half of the plain ones, with the checksums of headers made right again."""
    changed = bytearray(mutate_bytes(chance, data))
    if changed[:1] == b"\0" and chance.random() < 0.5:
        for at in range(2, len(changed) - 511, 512):
            block = changed[at : at + 512]
            if block[257:262] == b"ustar":
                block[148:156] = b" " * 8
                changed[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(changed)


TARGETS = [Target("tar", _tars, _seeds, _mutate, short_runs=2_000)]
