"""Entries from clients: with their bytes, by reference, from the base, or with the bytes to follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
from blake3 import blake3
from staddle.chunking import Chunker, Cut, content_id

from staddle_server.base.errors import BadRequest, Precondition
from staddle_server.base.limits import CHUNKS_INLINE_MAX, ENTRIES_PER_CALL_MAX, FILE_BYTES_MAX
from staddle_server.base.types import ChunkRef, Content, Entry, EntryType, Flag, Profile
from staddle_server.manifest.column_checks import check_columns
from staddle_server.manifest.columns import CheckedColumns, Columns
from staddle_server.manifest.entries import check_entry, check_path, shown
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upload.frames import check_ref, is_ref
from staddle_server.upload.writer import UploadWriter

_encoder = msgspec.msgpack.Encoder()


class Sent(msgspec.Struct, frozen=True, gc=False):
    """One entry as sent.

    Attributes:
        entry: Path and metadata, without content and file digest.
        data: The whole content.
        refs: The content by reference, or a part of it.
        from_base: The content is the base's.
        size: The content size that the client states; None if not stated.
        content_id: The content id that the client states; empty if not stated.
        profile: How the content was chunked, or is to be chunked.
        continue_at: Continues the open entry at this byte.
        digest: The whole file's digest that the client states; empty if not stated.
        more: A later message continues the list of references.

    """

    entry: Entry
    data: bytes | None = None
    refs: Sequence[ChunkRef] | None = None
    from_base: bool = False
    size: int | None = None
    content_id: bytes = b""
    profile: Profile = Profile.CONTENT_DEFINED
    continue_at: int | None = None
    digest: bytes = b""
    more: bool = False

    @property
    def complete(self) -> bool:
        """Whether no Data parts follow."""
        return (
            self.entry.type is not EntryType.FILE
            or self.data is not None
            or self.refs is not None
            or self.from_base
        )


class Removed(NamedTuple):
    """A removal as sent."""

    path: bytes


class _Whole(NamedTuple):
    entry: Entry


class _Small(NamedTuple):
    entry: Entry
    cuts: Sequence[Cut]
    profile: Profile


class _LongList(NamedTuple):
    sent: Sent
    refs: Sequence[ChunkRef]


Change = Sent | Removed | Columns
"""One change of a PutEntries call, as sent."""
_Checked = Sent | Removed | CheckedColumns
_Prepared = Removed | CheckedColumns | _Whole | _Small | _LongList


class _SizeSoFar(NamedTuple):
    """The file with an incomplete list of chunks, and its bytes so far."""

    entry: Entry | None
    size: int


class Intake:
    """Takes entries for one upload: finds every error before it takes anything."""

    def __init__(self, writer: UploadWriter, tenant: Tenant) -> None:
        self._writer = writer
        self._tenant = tenant
        self._damage: bool | None = None
        """Whether any damage is known; determined once."""

    def put_entries(self, number: int, changes: Sequence[Change]) -> list[int]:
        """Take one PutEntries call, all or nothing; a known number changes nothing.

        Returns:
            The positions of entries that refer to missing chunks. Columns have one for each entry.

        Raises:
            BadRequest: BAD_FIELD, BAD_SEQUENCE, DIGEST_MISMATCH.
            Precondition: ENTRIES_OUT_OF_ORDER, NOT_IN_BASE.
            Conflict: UPLOAD_BUSY.
            AlreadyExists: REQUEST_ID_REUSED, the number was used with other changes.

        """
        if sum(map(entries_in, changes)) > ENTRIES_PER_CALL_MAX:
            raise BadRequest(
                "BAD_FIELD", f"the limit is {ENTRIES_PER_CALL_MAX} changes a call", field="changes"
            )
        with self._writer.together():
            self._writer.check_free()
            expected = self._writer.put_entries_number + 1
            if not 1 <= number <= expected:
                raise Precondition(
                    "ENTRIES_OUT_OF_ORDER",
                    f"received PutEntries call {number}, expected {expected}",
                    expected=str(expected),
                )
            digest = blake3(_encoder.encode(changes)).digest()
            if number != expected:
                self._writer.check_replay(number, digest)
            checked = self._checked(changes)
            refs = [ref for change in checked for ref in _refs(change)]
            absent = self._writer.absent(refs)
            if number == expected:
                prepared = self._prepare_all(checked)
                self._writer.expect(ref for ref in refs if ref.digest in absent)
                with self._writer.taking():
                    self._take_all(prepared)
                    self._writer.accept_number(number, digest)
        return list(_lacking(checked, absent)) if absent else []

    def put(self, sent: Sent | Removed) -> None:
        """Take one complete entry, or a removal."""
        self._checked([sent])
        refs = _refs(sent)
        with self._writer.together():
            absent = self._writer.absent(refs) if refs else set()
            prepared = self._prepare(sent, self._opened())
            if absent:
                self._writer.expect(ref for ref in refs if ref.digest in absent)
            self._take(prepared)

    def _opened(self) -> _SizeSoFar:
        return _SizeSoFar(self._writer.open_entry, self._writer.open_size)

    @staticmethod
    def _checked(changes: Sequence[Change]) -> list[_Checked]:
        """Check columns, and the form of all chunk references."""
        checked: list[_Checked] = []
        for index, change in enumerate(changes):
            if isinstance(change, Columns):
                checked.append(check_columns(change))
                continue
            refs = _refs(change)
            if not all(map(is_ref, refs)):
                for position, ref in enumerate(refs):
                    check_ref(ref, f"changes[{index}].entry.content.chunks[{position}]")
            checked.append(change)
        return checked

    def _prepare_all(self, changes: Sequence[_Checked]) -> list[_Prepared]:
        prepared: list[_Prepared] = []
        opened = self._opened()
        for change in changes:
            if isinstance(change, CheckedColumns):
                prepared.append(change)
                continue
            step = self._prepare(change, opened)
            prepared.append(step)
            if isinstance(step, _LongList):
                size = sum(ref.length for ref in step.refs)
                if step.sent.continue_at is None:
                    opened = _SizeSoFar(step.sent.entry, size)
                else:
                    opened = _SizeSoFar(opened.entry, opened.size + size)
                if not step.sent.more:
                    opened = _SizeSoFar(None, 0)
        return prepared

    def _prepare(self, sent: Sent | Removed, opened: _SizeSoFar) -> _Prepared:
        """Return the steps for one entry.

        Raises:
            BadRequest, Precondition: The entry is refused.

        """
        if isinstance(sent, Removed):
            check_path(sent.path)
            return sent
        if sent.entry.type is not EntryType.FILE:
            if sent.data or sent.refs or sent.from_base:
                raise _bad(sent, "only a file has content")
            check_entry(sent.entry)
            return _Whole(sent.entry)
        if (sent.data is not None) + (sent.refs is not None) + sent.from_base != 1:
            raise _bad(sent, "a file must have one of content, data and content_from_base here")
        if sent.data is not None:
            return self._prepare_data(sent, sent.data)
        if sent.refs is not None:
            return self._prepare_refs(sent, sent.refs, opened)
        if self._damage is None:
            self._damage = self._writer.base.damage_known()
        content = self._writer.base_content(sent.entry.path, check=self._damage)
        check_stated(sent, content.size, content.content_id)
        check_file(sent.entry, content.size)
        return _Whole(msgspec.structs.replace(claimed(sent.entry, sent.digest), content=content))

    def _prepare_data(self, sent: Sent, data: bytes) -> _Small:
        cuts = cut_whole(self._tenant, data, sent.profile)
        identity = content_id((len(cut.data), cut.digest) for cut in cuts)
        check_stated(sent, len(data), identity)
        entry = sent.entry
        if sent.digest:
            entry = verified(entry, sent.digest, identity if len(cuts) < 2 else blake3(data).digest())
        check_file(entry, len(data))
        return _Small(entry, cuts, sent.profile)

    @staticmethod
    def _prepare_refs(sent: Sent, refs: Sequence[ChunkRef], opened: _SizeSoFar) -> _Whole | _LongList:
        size = sum(ref.length for ref in refs)
        if sent.continue_at is not None:
            entry = _continued(sent, opened)
            check_file(entry, opened.size + size, more=sent.more)
            return _LongList(sent, refs)
        if sent.more:
            check_file(sent.entry, size, more=True)
            return _LongList(sent, refs)
        identity = content_id(refs)
        check_stated(sent, size, identity)
        if len(refs) > CHUNKS_INLINE_MAX:
            check_file(sent.entry, size)
            return _LongList(sent, refs)
        content = Content(size, identity, sent.profile, tuple(refs))
        entry = msgspec.structs.replace(claimed(sent.entry, sent.digest), content=content)
        check_file(entry, size)
        return _Whole(entry)

    def _take_all(self, prepared: Sequence[_Prepared]) -> None:
        """Take one after another; complete ones in batches."""
        whole: list[Entry] = []
        for step in prepared:
            if isinstance(step, _Whole):
                whole.append(step.entry)
                continue
            if whole:
                self._writer.put_entries(whole)
                whole = []
            self._take(step)
        if whole:
            self._writer.put_entries(whole)

    def _take(self, prepared: _Prepared) -> None:
        match prepared:
            case Removed(path):
                self._writer.remove(path)
            case CheckedColumns():
                self._writer.put_columns(prepared)
            case _Whole(entry):
                self._writer.put_entries([entry])
            case _Small(entry, cuts, profile):
                self._writer.put_file(entry, cuts, profile)
            case _LongList(sent, refs):
                entry = claimed(sent.entry, sent.digest)
                self._writer.open_file(entry, sent.profile, continue_at=sent.continue_at)
                self._writer.add_refs(refs)
                if not sent.more:
                    self._writer.end_file()


def _refs(change: _Checked) -> Sequence[ChunkRef]:
    return () if isinstance(change, Removed) else change.refs or ()


def entries_in(change: Change | _Checked) -> int:
    """Return how many changes a change counts as."""
    return len(change) if isinstance(change, (Columns, CheckedColumns)) else 1


def _lacking(changes: Sequence[_Checked], absent: set[bytes]) -> Iterator[int]:
    """Yield the positions of entries that refer to these chunks."""
    first = 0
    for change in changes:
        if isinstance(change, CheckedColumns):
            yield from (first + at for at in change.lacking(absent))
        elif any(ref.digest in absent for ref in _refs(change)):
            yield first
        first += entries_in(change)


def _continued(sent: Sent, opened: _SizeSoFar) -> Entry:
    """Return the open entry, if this continues it.

    Raises:
        BadRequest: BAD_SEQUENCE.

    """
    entry = opened.entry
    if entry is None or (entry.path, opened.size) != (sent.entry.path, sent.continue_at):
        path = shown(sent.entry.path)
        found = "no entry is open" if entry is None else f"{shown(entry.path)} is open, at {opened.size}"
        raise BadRequest(
            "BAD_SEQUENCE", f"{path} cannot continue at byte {sent.continue_at}: {found}", path=path
        )
    return entry


def _bad(sent: Sent, what: str) -> BadRequest:
    path = shown(sent.entry.path)
    return BadRequest("BAD_FIELD", f"{path}: {what}", field="entry", path=path)


def cut_whole(tenant: Tenant, data: bytes, profile: Profile) -> list[Cut]:
    """Return the chunks of a whole small file."""
    if not data:
        return []
    parameters = tenant.cutter.parameters
    smallest = parameters.fixed_bytes if profile is Profile.FIXED else parameters.min_bytes
    if len(data) <= smallest:
        return [Cut(blake3(data).digest(), memoryview(data))]
    chunker = Chunker(tenant.cutter, fixed=profile is Profile.FIXED)
    return [*chunker.push(data), *chunker.finish()]


def check_stated(sent: Sent, size: int, identity: bytes) -> None:
    """Check what the client states about its content.

    Raises:
        BadRequest: DIGEST_MISMATCH.

    """
    if sent.size is not None and sent.size != size:
        path = shown(sent.entry.path)
        raise BadRequest(
            "DIGEST_MISMATCH", f"{path}: {sent.size} bytes were announced, {size} arrived", path=path
        )
    if sent.content_id and sent.content_id != identity:
        path = shown(sent.entry.path)
        raise BadRequest(
            "DIGEST_MISMATCH",
            f"{path}: its content id is {identity.hex()}, not {sent.content_id.hex()}",
            path=path,
        )


def check_file(entry: Entry, size: int, *, more: bool = False) -> None:
    """Check a file of this size (`more`: at least this size) against its entry.

    Raises:
        BadRequest: BAD_FIELD.

    """
    check_entry(entry)
    if size > FILE_BYTES_MAX:
        path = shown(entry.path)
        raise BadRequest(
            "BAD_FIELD", f"{path}: the limit of a file is {FILE_BYTES_MAX} bytes", field="size", path=path
        )
    holes = entry.attributes.holes if entry.attributes is not None else ()
    if holes and not more and holes[-1].offset + holes[-1].length > size:
        path = shown(entry.path)
        raise BadRequest("BAD_FIELD", f"{path}: a hole lies outside the file", field="holes", path=path)


def claimed(entry: Entry, digest: bytes) -> Entry:
    """Return the entry with a whole-file digest that the server did not check."""
    return msgspec.structs.replace(entry, file_digest=digest) if digest else entry


def verified(entry: Entry, digest: bytes, actual: bytes) -> Entry:
    """Return the entry with a verified whole-file digest.

    Raises:
        BadRequest: DIGEST_MISMATCH.

    """
    if digest != actual:
        path = shown(entry.path)
        raise BadRequest(
            "DIGEST_MISMATCH",
            f"{path}: its bytes have the digest {actual.hex()}, not {digest.hex()}",
            path=path,
        )
    return msgspec.structs.replace(entry, file_digest=digest, flags=entry.flags | Flag.DIGEST_VERIFIED)
