"""A tar as a stream of members, from a sender that is not trusted: bounded memory, and no end but its own."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from staddle._base.figures import counted

from staddle_server.base.limits import FILE_BYTES_MAX, KIB, MIB, PATH_BYTES_MAX, ZERO_BYTES_MAX
from staddle_server.base.types import EntryType, Xattr
from staddle_server.store.compressed_streams import ByteSource
from staddle_server.upload import tar_sparse
from staddle_server.upload.tar_header import (
    BLOCK,
    PAX_BYTES_MAX,
    ZERO_BLOCK,
    TarError,
    TarHeader,
    header_of,
    in_range,
    nearest_ns,
    owner_number,
    records_of,
    time_ns,
    whole_number,
)
from staddle_server.upload.tar_sparse import Sparse

EXTENSIONS_MAX: Final = 16
"""Headers that describe one member: long names and PAX."""
LONG_NAME_BYTES_MAX: Final = PATH_BYTES_MAX + 4 * KIB
PADDING_BYTES_MAX: Final = 16 * MIB
"""Zeros behind the end: writers fill their last record."""
HOLES_BYTES_MAX: Final = 64 * 1024 * 1024 * MIB
"""Zeros in the holes of all files of a tar: a few bytes stand for them, and they take 2 s of work a TiB."""
PIECE_BYTES: Final = 1 * MIB
_FILE_TYPES: Final = b"\0007S"
_GLOBAL_KEYS: Final = frozenset({b"mtime", b"uid", b"gid", b"uname", b"gname"})
_SCHILY_XATTR: Final = b"SCHILY.xattr."
_LIBARCHIVE_XATTR: Final = b"LIBARCHIVE.xattr."
_ACL: Final = b"SCHILY.acl."
_TYPES: Final = {
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHAR_DEVICE,
    b"4": EntryType.BLOCK_DEVICE,
    b"5": EntryType.DIRECTORY,
    b"6": EntryType.FIFO,
    b"D": EntryType.DIRECTORY,
}
_DEVICES: Final = frozenset({EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE})


class Member(NamedTuple):
    """One member. A file's bytes come from `TarReader.data`.

    Attributes:
        path: Relative to the root of the tar; b"" for the root.
        type: FILE for a hard link, too.
        size: The file's size, with its holes.
        sparse: Where the data of a sparse file is; None: it has no holes.
        link: The path of the file that this is a hard link to; None: it is no hard link.
        target: A symbolic link's target.
        described_bytes: The size of its extended headers.
        has_text_acl: Whether it has an ACL by names, which mean nothing here.
        lists_names: Whether it is a directory of GNU's incremental format.

    """

    path: bytes
    type: EntryType
    mode: int
    uid: int | None
    gid: int | None
    owner: str
    group: str
    mtime_ns: int
    size: int = 0
    sparse: Sparse | None = None
    link: bytes | None = None
    target: bytes | None = None
    device: tuple[int, int] | None = None
    xattrs: tuple[Xattr, ...] = ()
    described_bytes: int = 0
    has_text_acl: bool = False
    lists_names: bool = False


class _Described:
    """What extended headers say about the next member."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.sparse_numbers: list[int] = []
        self.size_bytes = 0
        self.headers = 0
        self.record_count = 0


class TarReader:
    """Reads the members of a tar in order. Not thread-safe."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._defaults: dict[bytes, bytes] = {}
        self._left = self._padding = 0
        """Bytes of the current member that are still to come, and what fills its last block."""
        self._sparse: Sparse | None = None
        self._path: bytes | None = None
        self._holes_bytes = 0
        self._weigh: Callable[[int], None] | None = None
        self.member_count = 0

    def members(self, weigh: Callable[[int], None] | None = None) -> Iterator[Member]:
        """Yield all members; skip what was not read of one before the next.

        `weigh` is called with the size of a member's extended headers so far, before the last of them is read.

        Raises:
            TarError: It is damaged or cut short, or holds what a backup cannot.

        """
        self._weigh = weigh
        while (member := self._located()) is not None:
            self.member_count += 1
            self._path = member.path
            yield member
            self._skip()
        self._read_padding()

    def data(self) -> Iterator[bytes | int]:
        """Yield the current file's bytes; a number stands for that many zeros, at most ZERO_BYTES_MAX."""
        sparse = self._sparse
        if sparse is None:
            while self._left:
                yield self._piece(self._left)
        else:
            at = 0
            for offset, length in sparse.pieces:
                yield from _zeros(offset - at)
                end = self._left - length
                while self._left > end:
                    yield self._piece(self._left - end)
                at = offset + length
            yield from _zeros(sparse.size - at)

    # ------------------------------------------------------------------ members

    def _located(self) -> Member | None:
        try:
            return self._next()
        except TarError as error:
            if "path" in error.facts or self._path is None:
                raise
            raise TarError(error.what, self._path, after=True) from error

    def _next(self) -> Member | None:
        described = _Described()
        while True:
            block = self._exactly(BLOCK)
            if block == ZERO_BLOCK:
                self._end(described)
                return None
            header = header_of(block)
            if not 0 <= header.size <= FILE_BYTES_MAX:
                raise TarError(f"a size is out of range: {header.size}", header.name)
            if header.type in b"xXgLK":
                self._extend(header, described)
            elif header.type == b"V":  # the label of a volume
                self._begin(header.size)
                self._skip()
                described = _Described()
            else:
                return self._member(header, block, described)

    def _end(self, described: _Described) -> None:
        if described.headers:
            raise TarError("an extended header has no member after it")
        if self._exactly(BLOCK) != ZERO_BLOCK:
            raise TarError("a lone block of zeros is in the middle of it: it is damaged there")

    def _extend(self, header: TarHeader, described: _Described) -> None:
        described.headers += 1
        if described.headers > EXTENSIONS_MAX:
            raise TarError(f"more than {EXTENSIONS_MAX} extended headers describe one member", self._path)
        most = LONG_NAME_BYTES_MAX if header.type in b"LK" else PAX_BYTES_MAX
        if header.size > most:
            raise TarError(
                f"an extended header after {counted(self.member_count, 'member')} has {header.size} bytes; the limit is {most}"
            )
        described.size_bytes += header.size
        if described.size_bytes > PAX_BYTES_MAX:
            raise TarError(
                f"the extended headers after {counted(self.member_count, 'member')} have {described.size_bytes} bytes "
                f"together; the limit for one member is {PAX_BYTES_MAX}"
            )
        if self._weigh is not None:
            self._weigh(described.size_bytes)
        data = self._exactly(header.size)
        self._exactly(-header.size % BLOCK)
        if header.type in b"LK":
            name = b"path" if header.type == b"L" else b"linkpath"
            described.records.setdefault(name, data.partition(b"\0")[0])
            return
        found: dict[bytes, bytes] = {}
        for key, value in records_of(data, described.record_count):
            described.record_count += 1
            if header.type != b"g":
                if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
                    described.sparse_numbers.append(whole_number(key.decode(), value))
                described.records[key] = value
            elif key in _GLOBAL_KEYS:
                found[key] = value
        self._defaults |= found

    def _member(self, header: TarHeader, block: bytes, described: _Described) -> Member:
        records = {
            key: value
            for key, value in (self._defaults | described.records).items()
            if value or key.startswith(_SCHILY_XATTR)  # of others, an empty value takes back what was said
        }
        path = _relative(records.get(b"GNU.sparse.name") or records.get(b"path") or header.name)
        is_directory = header.type in b"5D" or (
            header.type in b"0\0" and _named_as_directory(records, header)
        )
        kind = EntryType.DIRECTORY if is_directory else _TYPES.get(header.type, EntryType.FILE)
        if header.type not in b"0\0007S1" and header.type not in _TYPES:
            raise TarError(
                f"its type {header.type!r} is unknown; make the tar with --format=pax or --format=gnu", path
            )
        size = whole_number("size", records[b"size"], path) if b"size" in records else header.size
        if size > FILE_BYTES_MAX:
            raise TarError(f"a file has at most {FILE_BYTES_MAX} bytes, not {size}", path)
        is_link = header.type == b"1"
        if size and (is_link or (is_directory and header.type not in b"5D")):
            raise TarError("it is a link or a directory, and has bytes like a file", path)
        # The sizes of directories and special files say nothing: writers put nothing there.
        self._begin(size if kind is EntryType.FILE or header.type == b"D" else 0)
        sparse = None
        if kind is EntryType.FILE and not is_link:
            sparse = self._sparse = self._map(header, block, records, described, path)
        linkname = records.get(b"linkpath", header.linkname)
        return Member(
            path,
            kind,
            header.mode & 0o7777,
            owner_number("uid", records[b"uid"], path) if b"uid" in records else in_range(header.uid),
            owner_number("gid", records[b"gid"], path) if b"gid" in records else in_range(header.gid),
            _name(records.get(b"uname", header.uname)),
            _name(records.get(b"gname", header.gname)),
            time_ns(records[b"mtime"], path) if b"mtime" in records else nearest_ns(header.mtime_s * 10**9),
            sparse.size if sparse is not None else self._left,
            sparse,
            _relative(linkname) if is_link else None,
            linkname if kind is EntryType.SYMLINK else None,
            (header.devmajor, header.devminor) if kind in _DEVICES else None,
            _xattrs(records, path),
            described.size_bytes,
            any(key.startswith(_ACL) for key in records),
            header.type == b"D",
        )

    def _map(
        self,
        header: TarHeader,
        block: bytes,
        records: dict[bytes, bytes],
        described: _Described,
        path: bytes,
    ) -> Sparse | None:
        """Return the map of a sparse file; None for another file."""
        if b"GNU.sparse.major" in records:
            version = records[b"GNU.sparse.major"], records.get(b"GNU.sparse.minor")
            if version != (b"1", b"0"):
                raise TarError("its sparse format is unknown: make the tar with --sparse-version=1.0", path)
            size = whole_number("GNU.sparse.realsize", records.get(b"GNU.sparse.realsize", b""), path)
            pieces = tar_sparse.in_data(lambda: self._block_of_data(path), path)
        elif b"GNU.sparse.size" in records:
            size = whole_number("GNU.sparse.size", records[b"GNU.sparse.size"], path)
            pieces = tar_sparse.in_records(records, described.sparse_numbers, path)
        elif header.type == b"S":
            size, pieces = tar_sparse.old_gnu(block, lambda: self._exactly(BLOCK))
        else:
            return None
        found = tar_sparse.checked(size, pieces, self._left, path)
        self._holes_bytes += found.size - self._left
        if self._holes_bytes > HOLES_BYTES_MAX:
            raise TarError(
                f"with the holes of this sparse file, those of the tar have more than {HOLES_BYTES_MAX // MIB**2} TiB: "
                "send it in several tars",
                path,
            )
        return found

    # ------------------------------------------------------------------ bytes

    def _begin(self, size: int) -> None:
        self._left, self._padding, self._sparse = size, -size % BLOCK, None

    def _piece(self, most: int) -> bytes:
        data = self._exactly(min(most, PIECE_BYTES))
        self._left -= len(data)
        return data

    def _block_of_data(self, path: bytes) -> bytes:
        if self._left < BLOCK:
            raise TarError("the map of this sparse file is damaged: it has no end", path)
        return self._piece(BLOCK)

    def _skip(self) -> None:
        while self._left:
            self._piece(self._left)
        if self._padding:
            self._exactly(self._padding)
            self._padding = 0

    def _read_padding(self) -> None:
        size = 0
        while data := self._source.read(PIECE_BYTES):
            size += len(data)
            if data.strip(b"\0"):
                raise TarError("more follows its end: send one tar at a time")
            if size > PADDING_BYTES_MAX:
                raise TarError(f"more than {PADDING_BYTES_MAX // MIB} MiB of zeros follow its end")

    def _exactly(self, size: int) -> bytes:
        """Return so many bytes."""
        data = self._source.read(size) if size else b""
        if len(data) == size:
            return data
        pieces, have = [data], len(data)
        while have < size:
            data = self._source.read(size - have)
            if not data:
                raise TarError("it is cut short, so there is no backup: send it whole", self._path)
            pieces.append(data)
            have += len(data)
        return b"".join(pieces)


def _zeros(count: int) -> Iterator[int]:
    while count > 0:
        yield min(count, ZERO_BYTES_MAX)
        count -= ZERO_BYTES_MAX


def _named_as_directory(records: dict[bytes, bytes], header: TarHeader) -> bool:
    return (records.get(b"path") or header.name).endswith(b"/")


def _relative(name: bytes) -> bytes:
    """Return a member's name as a path of a backup. Raises TarError for one that leads elsewhere."""
    if name.startswith(b"/"):
        raise TarError("its name is absolute: make the tar without -P, or in the directory itself (-C)", name)
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise TarError('its name holds "..", which leads out of the backup', name)
    return b"/".join(parts)


def _name(raw: bytes) -> str:
    """Return an owner by name; none for one that is not text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _xattrs(records: dict[bytes, bytes], path: bytes) -> tuple[Xattr, ...]:
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(_LIBARCHIVE_XATTR):
            name = unquote_to_bytes(key[len(_LIBARCHIVE_XATTR) :])
            try:
                found.setdefault(name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True))
            except binascii.Error as error:
                raise TarError(f"the value of {key[:80]!r} is not base64", path) from error
        elif key.startswith(_SCHILY_XATTR):
            # As GNU tar writes names.
            name = key[len(_SCHILY_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
            found[name] = value
    return tuple(Xattr(*each) for each in sorted(found.items()))
