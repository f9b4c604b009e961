"""Messages to values and back.

Incoming messages are checked for their form here, for their meaning in later layers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec import structs
from staddle.chunking import ChunkerParameters
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from staddle_server.base import limits
from staddle_server.base.errors import BadRequest
from staddle_server.base.types import (
    Attributes,
    ChunkRef,
    Content,
    Entry,
    EntryType,
    Flag,
    Hole,
    Kind,
    Profile,
    Scope,
    Xattr,
)
from staddle_server.catalog import Backup, Dataset, DrillState, Hold, Upload, UploadRequest
from staddle_server.manifest.compare import Changed
from staddle_server.manifest.entries import I64_MAX, I64_MIN
from staddle_server.restore.browse import Selector
from staddle_server.upload.intake import Removed, Sent
from staddle_server.upload.progress import Progress, decode_progress

_TIMESTAMP_NS_MAX: Final = 253_402_300_799_999_999_999
T = TypeVar("T")
M = TypeVar("M", bound=Message)
PathMessage = pb.Entry | pb.Remove | sv.ReadRangeRequest | sv.ListEntriesRequest


def bad(field: str, what: str) -> BadRequest:
    """Return the error for an invalid field."""
    return BadRequest("BAD_FIELD", f"{field}: {what}", field=field)


def identifier(text: str, field: str) -> bytes:
    """Parse an id: 32 hexadecimal digits."""
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != 16 or len(text) != 32:
        raise bad(field, "an id must be 32 hexadecimal digits")
    return data


def words(text: str, field: str, limit: int, *, empty: bool = True) -> str:
    """Check a text: no control characters, at most `limit` bytes."""
    if not text and not empty:
        raise bad(field, "required")
    if len(text.encode("utf-8")) > limit:
        raise bad(field, f"the limit is {limit} bytes")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        raise bad(field, "control characters are not allowed")
    return text


def size(value: int, field: str, default: int, limit: int) -> int:
    """Check a page size."""
    if value > limit:
        raise bad(field, f"the limit is {limit}")
    return value or default


def path_of(message: PathMessage) -> bytes:
    """Return the path of a message that has it as text or, if it is not UTF-8, as bytes."""
    return _name_of(message.path, message.raw_path, "path")


def _name_of(text: str, raw: bytes, field: str) -> bytes:
    """Return a name that a message has as text or, if it is not UTF-8, as bytes."""
    if text and raw:
        raise bad(field, f"{field} and raw_{field} exclude each other")
    return raw or text.encode("utf-8")


def set_name(message: Message, field: str, name: bytes) -> None:
    """Write a name as text or, if it is not UTF-8, as bytes into the field with the prefix raw_."""
    try:
        setattr(message, field, name.decode("utf-8"))
    except UnicodeDecodeError:
        setattr(message, f"raw_{field}", name)


# ---------------------------------------------------------------------- times


def timestamp(ns: int) -> Timestamp:
    """Return nanoseconds since 1970 as a Timestamp."""
    return Timestamp(seconds=ns // 10**9, nanos=ns % 10**9)


def ns_of(message: Timestamp, field: str) -> int:
    """Return a Timestamp as nanoseconds since 1970; one outside the years 1678 to 2261 as the nearest that a catalog
    can hold.
    """
    ns = message.seconds * 10**9 + message.nanos
    if not 0 <= message.nanos < 10**9 or abs(ns) > _TIMESTAMP_NS_MAX:
        raise bad(field, "the time must be between the years 1 and 9999")
    return min(max(ns, I64_MIN), I64_MAX)


def duration(seconds: float) -> Duration:
    """Return seconds as a Duration."""
    message = Duration()
    message.FromNanoseconds(int(seconds * 10**9))
    return message


# ---------------------------------------------------------------------- entries in


def sent_of(message: pb.Entry, *, more: bool = False) -> Sent:
    """Convert a sent entry. Called millions of times: a field that is not set costs only the check."""
    digest = file_digest_of(message)
    refs = None
    stated_size = None
    content_id = b""
    profile = message.profile
    data = message.data if message.HasField("data") else None
    from_base = message.content_from_base
    if message.HasField("content"):
        content = message.content
        content_id = content.content_id
        if content_id and len(content_id) != 32:
            raise bad("entry.content.content_id", "a content id must be 32 bytes")
        stated_size = content.size_bytes or None
        profile = profile or content.profile
        chunks = content.chunks
        if chunks or (data is None and not from_base):
            refs = [ChunkRef(ref.length_bytes, ref.digest) for ref in chunks]
    return Sent(
        entry=_entry_in(message),
        data=data,
        refs=refs,
        from_base=from_base,
        size=stated_size,
        content_id=content_id,
        profile=profile_of(profile, "entry.profile"),
        continue_at=message.continue_at_bytes if message.HasField("continue_at_bytes") else None,
        digest=digest,
        more=more,
    )


def file_digest_of(message: pb.Entry) -> bytes:
    """Return the digest that a sent entry states for its whole file; empty if it states none."""
    digest = message.file_digest.blake3 if message.HasField("file_digest") else b""
    if digest and len(digest) != 32:
        raise bad("entry.file_digest.blake3", "a digest must be 32 bytes")
    return digest


def profile_of(number: int, field: str) -> Profile:
    """Return the chunker profile with this number on the wire."""
    return _PROFILES.get(number) or _enum(Profile, number, field)


def _enum(enum: type[T], value: int, field: str) -> T:
    try:
        return enum(value)  # type: ignore[call-arg]
    except ValueError:
        raise bad(field, f"unknown value {value}") from None


def attributes_of(m: pb.Entry) -> Attributes | None:
    """Return a sent entry's extended attributes and holes; None if it has none."""
    xattrs, holes = m.xattrs, m.holes
    if not xattrs and not holes:
        return None
    return Attributes(
        tuple(Xattr(_name_of(x.name, x.raw_name, "name"), x.value) for x in xattrs),
        tuple(Hole(h.offset_bytes, h.length_bytes) for h in holes),
    )


def _entry_in(m: pb.Entry) -> Entry:
    type_ = _TYPES.get(m.type) or _enum(EntryType, m.type, "entry.type")
    has = m.HasField
    major, minor = m.device_major, m.device_minor
    return Entry(
        path_of(m),
        type_,
        m.mode if has("mode") else None,
        m.uid if has("uid") else None,
        m.gid if has("gid") else None,
        m.mtime_ns if has("mtime_ns") else None,
        m.ctime_ns if has("ctime_ns") else None,
        m.inode if has("inode") else None,
        link_target=_name_of(m.link_target, m.raw_link_target, "link_target") or None,
        # A tree has few distinct values of these, and thousands of its entries are in memory at once.
        owner=sys.intern(m.owner),
        group=sys.intern(m.group),
        device=(major, minor) if major or minor or type_ in _DEVICES else None,
        link_group=m.link_group,
        attributes=attributes_of(m),
        flags=(_READ_AGAIN if m.read_again else 0) | (_INCOMPLETE if m.incomplete else 0),
    )


_TYPES: Final = {each.value: each for each in EntryType} | {0: EntryType.FILE}
_PROFILES: Final = {0: Profile.CONTENT_DEFINED} | {each.value: each for each in Profile}
_DEVICES: Final = frozenset({EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE})


def change_of(message: sv.EntryChange) -> Sent | Removed:
    """Convert one change of a PutEntries call that is not columns."""
    if message.HasField("entry"):
        return sent_of(message.entry, more=message.more)
    if message.HasField("remove"):
        return Removed(path_of(message.remove))
    raise bad("changes", "a change must be an entry, columns of entries, or a removal")


# ---------------------------------------------------------------------- entries out


def entry_out(entry: Entry, refs: Iterable[tuple[int, bytes]] = ()) -> pb.Entry:
    """Convert an entry to send, with its content's size and id, and with the given chunks."""
    flags = entry.flags
    m = pb.Entry(
        type=int(entry.type),  # type: ignore[arg-type] # the numbers are the same
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        ctime_ns=entry.ctime_ns,
        inode=entry.inode,
    )
    set_name(m, "path", entry.path)
    if entry.owner or entry.group:
        m.owner, m.group = entry.owner, entry.group
    if flags:
        m.read_again = bool(flags & _READ_AGAIN)
        m.implied = bool(flags & _IMPLIED)
        m.incomplete = bool(flags & _INCOMPLETE)
    if entry.link_target is not None:
        set_name(m, "link_target", entry.link_target)
    if entry.content is not None:
        _content_out(entry.content, refs, m.content)
    set_rare(entry, m)
    return m


def set_rare(entry: Entry, m: pb.Entry) -> None:
    """Write the fields of an entry that few entries have."""
    if entry.link_group:
        m.link_group = entry.link_group
    if entry.device is not None:
        m.device_major, m.device_minor = entry.device
    if entry.attributes is not None:
        _attributes_out(entry.attributes, m)
    if entry.file_digest:
        m.file_digest.blake3 = entry.file_digest
        verified = entry.flags & _DIGEST_VERIFIED
        m.file_digest.origin = pb.DIGEST_ORIGIN_VERIFIED if verified else pb.DIGEST_ORIGIN_CLAIMED


# As plain numbers: an operation on flags creates an object of their class for each of millions of entries.
_READ_AGAIN: Final = Flag.READ_AGAIN.value
_IMPLIED: Final = Flag.IMPLIED.value
_INCOMPLETE: Final = Flag.INCOMPLETE.value
_DIGEST_VERIFIED: Final = Flag.DIGEST_VERIFIED.value


def _content_out(content: Content, refs: Iterable[tuple[int, bytes]], m: pb.Content) -> None:
    m.size_bytes = content.size
    m.content_id = content.content_id
    m.profile = int(content.profile)  # type: ignore[assignment] # the numbers are the same
    for length, digest in refs:
        m.chunks.add(digest=digest, length_bytes=length)


def _attributes_out(attributes: Attributes, m: pb.Entry) -> None:
    for name, value in attributes.xattrs:
        set_name(m.xattrs.add(value=value), "name", name)
    for offset, length in attributes.holes:
        m.holes.add(offset_bytes=offset, length_bytes=length)


def changed_out(changed: Changed) -> sv.Change:
    """Convert a difference between two backups."""
    return sv.Change(
        type=int(changed.type),  # type: ignore[arg-type] # the numbers are the same
        before=None if changed.before is None else entry_out(changed.before),
        after=None if changed.after is None else entry_out(changed.after),
        uncertain=changed.uncertain,
    )


def fitting(messages: Iterable[M], size_max: int) -> list[M]:
    """Return the longest prefix of these messages that has at most `size_max` bytes, and at least one
    message.
    """
    page: list[M] = []
    size = 0
    for message in messages:
        size += message.ByteSize()
        if page and size > size_max:
            break
        page.append(message)
    return page


# ---------------------------------------------------------------------- uploads and backups


def chunker_out(parameters: ChunkerParameters) -> pb.Chunker:
    """Convert a tenant's chunker."""
    return pb.Chunker(
        min_bytes=parameters.min_bytes,
        avg_bytes=parameters.avg_bytes,
        max_bytes=parameters.max_bytes,
        normalization=parameters.normalization,
        seed=parameters.seed,
        fixed_bytes=parameters.fixed_bytes,
    )


def tags_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Check and return tags."""
    if len(tags) > limits.TAGS_MAX:
        raise bad("tags", f"the limit is {limits.TAGS_MAX} tags")
    return {
        words(key, "tags", limits.TAG_KEY_BYTES_MAX, empty=False): words(
            value, "tags", limits.TAG_VALUE_BYTES_MAX
        )
        for key, value in tags.items()
    }


def dataset_name(name: str) -> str:
    """Check and return a dataset's name."""
    return words(name, "dataset", limits.DATASET_BYTES_MAX, empty=False)


def begin_of(m: sv.BeginUploadRequest) -> UploadRequest:
    """Convert a BeginUpload request."""
    kind = _enum(Kind, m.kind, "kind")
    scope = _enum(Scope, m.scope or Scope.WHOLE, "scope")
    if len(m.root.encode("utf-8")) > limits.ROOT_BYTES_MAX:
        raise bad("root", f"the limit is {limits.ROOT_BYTES_MAX} bytes")
    return UploadRequest(
        dataset=dataset_name(m.dataset),
        request_id=words(m.request_id, "request_id", limits.REQUEST_ID_BYTES_MAX),
        kind=kind,
        scope=scope,
        tags=tags_of(m.tags),
        host=words(m.host, "host", limits.HOST_BYTES_MAX),
        root=m.root,
        new_root=m.new_root,
        take_over=m.take_over,
        fingerprint=words(m.fingerprint, "fingerprint", limits.FINGERPRINT_BYTES_MAX),
        base=identifier(m.base_backup_id, "base_backup_id") if m.base_backup_id else b"",
    )


def durable_out(progress: Progress) -> pb.DurablePoint:
    """Convert an upload's durable point."""
    m = pb.DurablePoint(
        position=progress.position,
        entry_count=progress.entry_count,
        data_bytes=progress.data_bytes,
        put_entries_number=progress.put_entries_number,
    )
    if progress.last_path is not None:
        m.last_entry.SetInParent()
        set_name(m.last_entry, "path", progress.last_path)
    if progress.open_entry is not None:
        m.open_entry.CopyFrom(entry_out(progress.open_entry.entry))
        m.open_offset_bytes = progress.open_entry.size_bytes
    return m


def _progress_of(upload: Upload) -> Progress:
    """Return the durable point; an ended upload keeps only its counts."""
    if upload.durable:
        return decode_progress(upload.durable)
    return Progress(upload.position, upload.entry_count, upload.data_bytes)


def upload_out(upload: Upload, chunker: ChunkerParameters, endpoint: str) -> pb.Upload:
    """Convert an upload."""
    return pb.Upload(
        id=upload.id.hex(),
        dataset=upload.dataset,
        request_id=upload.request_id,
        state=int(upload.state),  # type: ignore[arg-type] # the numbers are the same
        epoch=upload.epoch,
        lease_expire_time=timestamp(upload.lease_expires_ns),
        expire_time=timestamp(upload.expires_ns),
        begin_time=timestamp(upload.begin_ns),
        kind=int(upload.kind),  # type: ignore[arg-type] # the numbers are the same
        scope=int(upload.scope),  # type: ignore[arg-type] # the numbers are the same
        base_backup_id=upload.base.hex(),
        durable=durable_out(_progress_of(upload)),
        endpoint=endpoint,
        last_failure=upload.last_failure,
        backup_id=upload.backup.hex(),
        chunker=chunker_out(chunker),
        host=upload.host,
        root=upload.root,
        tags=upload.tags,
        principal=upload.principal,
    )


def backup_out(backup: Backup) -> pb.Backup:
    """Convert a backup."""
    return pb.Backup(
        id=backup.id.hex(),
        dataset=backup.dataset,
        number=backup.number,
        kind=int(backup.kind),  # type: ignore[arg-type] # the numbers are the same
        base_backup_id=backup.base.hex(),
        begin_time=timestamp(backup.begin_ns),
        commit_time=timestamp(backup.commit_ns),
        entry_count=backup.root.entries,
        data_bytes=backup.root.data_bytes,
        stored_bytes=backup.stored_bytes,
        changes=pb.ChangeCounts(**structs.asdict(backup.changes)),
        tags=backup.tags,
        host=backup.host,
        root=backup.source_root,
        principal=backup.principal,
        delete_time=None if backup.deleted_ns is None else timestamp(backup.deleted_ns),
        scope=int(backup.scope),  # type: ignore[arg-type] # the numbers are the same
        manifest_digest=backup.root.digest.hex(),
        purge_time=None if backup.purge_ns is None else timestamp(backup.purge_ns),
        retain_until_time=timestamp(backup.retain_until_ns) if backup.retain_until_ns else None,
        hold=hold_out(backup.hold),
        dataset_hold=hold_out(backup.dataset_hold),
        begun_by=backup.authors.begun_by,
        written_by=backup.authors.written_by,
        more_writers=backup.authors.more_writers,
    )


def hold_out(hold: Hold | None) -> pb.Hold | None:
    """Convert a legal hold."""
    return None if hold is None else pb.Hold(reason=hold.reason, time=timestamp(hold.since_ns))


def dataset_out(dataset: Dataset) -> pb.Dataset:
    """Convert a dataset."""
    return pb.Dataset(
        name=dataset.name,
        create_time=timestamp(dataset.created_ns),
        host=dataset.host,
        root=dataset.root,
        backup_count=dataset.backup_count,
        newest_backup=None if dataset.newest_backup is None else backup_out(dataset.newest_backup),
        drill=None if dataset.drill is None else _drill_out(dataset.drill),
    )


def _drill_out(drill: DrillState) -> pb.Drill:
    return pb.Drill(
        end_time=timestamp(drill.end_ns),
        fault=drill.fault,
        proven_time=timestamp(drill.proven_ns) if drill.proven_ns else None,
        proven_number=drill.proven_number,
    )


def selector_of(m: pb.BackupSelector) -> Selector:
    """Return the selected backup's selector."""
    which = m.WhichOneof("by")
    if which == "at":
        return Selector(at_ns=ns_of(m.at, "backup.at"))
    if which == "ago":
        ago_ns = m.ago.seconds * 10**9 + m.ago.nanos
        if ago_ns < 0 or ago_ns > _TIMESTAMP_NS_MAX:
            raise bad("backup.ago", "use a duration back from now")
        return Selector(ago_ns=ago_ns)
    text = m.backup.lower()
    if text not in {"", "latest"} and (not 4 <= len(text) <= 32 or set(text) - set("0123456789abcdef")):
        raise bad("backup.backup", 'use "latest", or 4 to 32 hexadecimal digits')
    return Selector(backup=text)
