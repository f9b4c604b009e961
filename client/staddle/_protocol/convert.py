"""Between the wire's messages and the library's values."""

import datetime
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Final, Literal

from google.protobuf import duration_pb2, timestamp_pb2

from staddle._errors import BadRequestError, ProtocolError
from staddle._types.backups import (
    Backup,
    BackupKind,
    Change,
    ChangeCounts,
    ChangeType,
    Dataset,
    Drill,
    Hold,
    OpenUpload,
    Profile,
    Scope,
)
from staddle._types.entries import (
    ChunkRef,
    DigestOrigin,
    Entry,
    EntryType,
    Hole,
    PathLike,
    Xattr,
    datetime_from_ns,
    path_to_bytes,
)
from staddle._types.retention import Retention, RetentionPolicy, RetentionTag
from staddle._types.server import ChunkerInfo, PeerServer, SecondSite, ServerCondition, ServerInfo, StoreLock
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

PATH_BYTES_MAX: Final = 16 * 1024
COMPONENT_BYTES_MAX: Final = 1024
COMPONENTS_MAX: Final = 1024

COUNTS: Final = ("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly")
"""Fields of a policy."""

_NS: Final = 1_000_000_000

ENTRY_TYPES: Final = {
    pb.ENTRY_TYPE_UNSPECIFIED: EntryType.FILE,
    pb.ENTRY_TYPE_FILE: EntryType.FILE,
    pb.ENTRY_TYPE_DIRECTORY: EntryType.DIRECTORY,
    pb.ENTRY_TYPE_SYMLINK: EntryType.SYMLINK,
    pb.ENTRY_TYPE_FIFO: EntryType.FIFO,
    pb.ENTRY_TYPE_CHAR_DEVICE: EntryType.CHAR_DEVICE,
    pb.ENTRY_TYPE_BLOCK_DEVICE: EntryType.BLOCK_DEVICE,
    pb.ENTRY_TYPE_SOCKET: EntryType.SOCKET,
}
_PEER_STATES: Final = {
    sv.PeerServer.STATE_LIVE: "live",
    sv.PeerServer.STATE_DRAINING: "draining",
    sv.PeerServer.STATE_DEAD: "dead",
}
KINDS: Final = {
    pb.BACKUP_KIND_UNSPECIFIED: BackupKind.AUTO,
    pb.BACKUP_KIND_FULL: BackupKind.FULL,
    pb.BACKUP_KIND_INCREMENTAL: BackupKind.INCREMENTAL,
    pb.BACKUP_KIND_DIFFERENTIAL: BackupKind.DIFFERENTIAL,
}
KINDS_TO_WIRE: Final = {kind: number for number, kind in KINDS.items()}
SCOPES: Final = {
    pb.UPLOAD_SCOPE_UNSPECIFIED: Scope.WHOLE,
    pb.UPLOAD_SCOPE_WHOLE: Scope.WHOLE,
    pb.UPLOAD_SCOPE_CHANGES: Scope.CHANGES,
}
SCOPES_TO_WIRE: Final = {
    Scope.WHOLE: pb.UPLOAD_SCOPE_WHOLE,
    Scope.CHANGES: pb.UPLOAD_SCOPE_CHANGES,
}
PROFILES_TO_WIRE: Final = {
    Profile.CONTENT_DEFINED: pb.CHUNKER_PROFILE_CONTENT_DEFINED,
    Profile.FIXED: pb.CHUNKER_PROFILE_FIXED,
}
DIGEST_ORIGINS: Final = {
    pb.DIGEST_ORIGIN_VERIFIED: DigestOrigin.VERIFIED,
    pb.DIGEST_ORIGIN_CLAIMED: DigestOrigin.CLAIMED,
}
CHANGE_TYPES: Final = {
    sv.CHANGE_TYPE_ADDED: ChangeType.ADDED,
    sv.CHANGE_TYPE_REMOVED: ChangeType.REMOVED,
    sv.CHANGE_TYPE_CONTENT: ChangeType.CONTENT,
    sv.CHANGE_TYPE_METADATA: ChangeType.METADATA,
}


def text(field: str, value: str) -> str:
    """A string that the wire can carry. Raises BadRequestError for one that is not Unicode."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRequestError(f"{field} {value!a} is not Unicode text.", facts={"field": field}) from error
    return value


def split_path(path: PathLike) -> dict[str, bytes | str]:
    """A path as the fields `path` or `raw_path` of a message: `Entry(**split_path(p))`. Raises BadRequestError for an invalid path."""
    raw = path_to_bytes(path)
    wrong = path_fault(raw)
    if wrong:
        raise BadRequestError(f"invalid path {raw!r}: {wrong}.", facts={"field": "path"})
    return wire_path(raw)


def wire_path(path: bytes) -> dict[str, bytes | str]:
    """A path as the field that can carry it, unchecked."""
    return dict([field_for("path", path)])


def field_for(name: str, raw: bytes) -> tuple[str, bytes | str]:
    """The field of a message that can carry these bytes, and its value: `name` as text if they are UTF-8, else `raw_<name>`."""
    try:
        return name, raw.decode()
    except UnicodeDecodeError:
        return f"raw_{name}", raw


def path_fault(path: bytes) -> str:
    """What is wrong with a path relative to a root; empty: nothing. The root itself is the empty path."""
    if not path:
        return ""
    if len(path) > PATH_BYTES_MAX:
        return f"it has more than {PATH_BYTES_MAX} bytes"
    if b"\0" in path:
        return "it holds NUL"
    components = path.split(b"/")
    if len(components) > COMPONENTS_MAX:
        return f"it has more than {COMPONENTS_MAX} components"
    for component in components:
        if component in {b"", b".", b".."}:
            return "its components must not be empty, '.' or '..', and it is relative to the root"
        if len(component) > COMPONENT_BYTES_MAX:
            return f"a component has more than {COMPONENT_BYTES_MAX} bytes"
    return ""


def path_of(message: pb.Entry | pb.Remove | sv.Damage) -> bytes:
    """The path that a message of the server names. Raises ProtocolError for one that could lead out of a root."""
    path = message.raw_path or message.path.encode()
    wrong = path_fault(path)
    if wrong:
        raise ProtocolError(f"The server sent the path {path!r}: {wrong}.")
    return path


def link_target_of(entry: pb.Entry) -> bytes:
    """Where a symlink points."""
    return entry.raw_link_target or entry.link_target.encode()


def sort_key(path: bytes) -> bytes:
    """The order of entries: component by component."""
    return path.replace(b"/", b"\0")


def is_below(path: bytes, directory: bytes) -> bool:
    """Whether a path lies below a directory (the root is above all others)."""
    return path.startswith(directory + b"/") if directory else bool(path)


def directories_above(path: bytes) -> Iterator[bytes]:
    """All directories above a path, up to the root."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def time_ns_of(timestamp: timestamp_pb2.Timestamp) -> int:
    """A Timestamp as nanoseconds since 1970."""
    return timestamp.seconds * _NS + timestamp.nanos


def datetime_of(timestamp: timestamp_pb2.Timestamp) -> datetime.datetime:
    """A Timestamp as a datetime, cut to microseconds. Raises ProtocolError."""
    try:
        return datetime_from_ns(time_ns_of(timestamp))
    except OverflowError as error:
        raise ProtocolError(f"The server sent a time out of range: {timestamp.seconds} s.") from error


def _time_or_none(
    message: pb.Backup,
    field: Literal["delete_time", "purge_time", "retain_until_time"],
) -> datetime.datetime | None:
    return datetime_of(getattr(message, field)) if message.HasField(field) else None


def rare_values(message: pb.Entry, kind: EntryType) -> dict[str, Any]:
    """The values of an Entry that few entries have."""
    is_device = kind in {EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE}
    return {
        "device": (message.device_major, message.device_minor) if is_device else None,
        "link_group": message.link_group,
        "xattrs": tuple(
            Xattr(xattr.raw_name or xattr.name.encode(), xattr.value) for xattr in message.xattrs
        ),
        "holes": tuple(Hole(hole.offset_bytes, hole.length_bytes) for hole in message.holes),
        "file_digest": message.file_digest.blake3.hex(),
        "digest_origin": DIGEST_ORIGINS.get(message.file_digest.origin),
    }


def entry_of(message: pb.Entry) -> Entry:
    """An entry as the server lists it."""
    optional: dict[str, Any] = {
        name: getattr(message, name) if message.HasField(name) else None
        for name in ("mode", "uid", "gid", "mtime_ns", "ctime_ns", "inode")
    }
    kind = ENTRY_TYPES.get(message.type)
    if kind is None:
        raise ProtocolError(
            f"The server sent an entry of the unknown type {message.type}: this client is too old."
        )
    return Entry(
        path_bytes=path_of(message),
        type=kind,
        **optional,
        owner=message.owner,
        group=message.group,
        size_bytes=message.content.size_bytes,
        content_id=message.content.content_id.hex(),
        chunks=tuple(ChunkRef(chunk.digest, chunk.length_bytes) for chunk in message.content.chunks),
        link_target_bytes=link_target_of(message),
        read_again=message.read_again,
        implied=message.implied,
        incomplete=message.incomplete,
        **rare_values(message, kind),
    )


def backup_of(message: pb.Backup) -> Backup:
    """A backup as the server describes it."""
    changes = message.changes
    return Backup(
        id=message.id,
        dataset=message.dataset,
        number=message.number,
        kind=KINDS.get(message.kind, BackupKind.AUTO),
        base_backup_id=message.base_backup_id,
        begin_time=datetime_of(message.begin_time),
        begin_time_ns=time_ns_of(message.begin_time),
        commit_time=datetime_of(message.commit_time),
        entry_count=message.entry_count,
        data_bytes=message.data_bytes,
        stored_bytes=message.stored_bytes,
        changes=ChangeCounts(
            changes.added,
            changes.content_changed,
            changes.metadata_changed,
            changes.removed,
            changes.metadata_kept,
        ),
        tags=MappingProxyType(dict(message.tags)),
        host=message.host,
        root=message.root,
        principal=message.principal,
        delete_time=_time_or_none(message, "delete_time"),
        scope=SCOPES.get(message.scope, Scope.WHOLE),
        manifest_digest=message.manifest_digest,
        purge_time=_time_or_none(message, "purge_time"),
        retain_until_time=_time_or_none(message, "retain_until_time"),
        hold=hold_of(message.hold) if message.HasField("hold") else None,
        dataset_hold=hold_of(message.dataset_hold) if message.HasField("dataset_hold") else None,
        begun_by=message.begun_by,
        written_by=tuple(message.written_by),
        more_writers=message.more_writers,
    )


def hold_of(message: pb.Hold) -> Hold:
    """A legal hold."""
    return Hold(message.reason, datetime_of(message.time))


def dataset_of(message: pb.Dataset) -> Dataset:
    """A dataset as the server describes it."""
    return Dataset(
        name=message.name,
        create_time=datetime_of(message.create_time),
        host=message.host,
        root=message.root,
        backup_count=message.backup_count,
        newest_backup=backup_of(message.newest_backup) if message.HasField("newest_backup") else None,
        drill=_drill_of(message.drill) if message.HasField("drill") else None,
    )


def _drill_of(message: pb.Drill) -> Drill:
    return Drill(
        end_time=datetime_of(message.end_time),
        fault=message.fault,
        proven_time=datetime_of(message.proven_time) if message.HasField("proven_time") else None,
        proven_number=message.proven_number,
    )


def open_upload_of(message: pb.Upload) -> OpenUpload:
    """An open upload as the server lists it."""
    return OpenUpload(
        id=message.id,
        dataset=message.dataset,
        epoch=message.epoch,
        principal=message.principal,
        host=message.host,
        root=message.root,
        begin_time=datetime_of(message.begin_time),
        lease_expire_time=datetime_of(message.lease_expire_time),
        expire_time=datetime_of(message.expire_time),
        durable_entries=message.durable.entry_count,
        durable_bytes=message.durable.data_bytes,
        last_failure=message.last_failure,
    )


def change_of(message: sv.Change) -> Change:
    """A difference as the server lists it."""
    kind = CHANGE_TYPES.get(message.type)
    if kind is None:
        raise ProtocolError(
            f"The server sent a change of the unknown type {message.type}: this client is too old."
        )
    return Change(
        type=kind,
        before=entry_of(message.before) if message.HasField("before") else None,
        after=entry_of(message.after) if message.HasField("after") else None,
        uncertain=message.uncertain,
    )


def chunker_of(message: pb.Chunker) -> ChunkerInfo:
    """The parameters of the cuts."""
    return ChunkerInfo(
        min_bytes=message.min_bytes,
        avg_bytes=message.avg_bytes,
        max_bytes=message.max_bytes,
        normalization=message.normalization,
        seed=message.seed,
        fixed_bytes=message.fixed_bytes,
    )


def retention_of(message: pb.Retention) -> Retention:
    """A dataset's retention from the server's message."""
    return Retention(
        policy_of(message.policy) if message.HasField("policy") else None,
        timedelta_of(message.minimum),
        hold_of(message.hold) if message.HasField("hold") else None,
    )


def policy_of(message: pb.RetentionPolicy) -> RetentionPolicy:
    """A policy from the server's message."""
    return RetentionPolicy(
        keep_within=timedelta_of(message.keep_within),
        keep_tags=tuple(
            RetentionTag(tag.key, tag.value if tag.HasField("value") else None) for tag in message.keep_tags
        ),
        time_zone=message.time_zone,
        **{name: getattr(message, name) for name in COUNTS},
    )


def server_info_of(message: sv.GetServerInfoResponse) -> ServerInfo:
    """The server's information about itself."""
    limits: dict[str, float] = {}
    for field in message.limits.DESCRIPTOR.fields:
        value = getattr(message.limits, field.name)
        limits[field.name] = value if isinstance(value, int) else value.seconds + value.nanos / 1e9
    return ServerInfo(
        version=message.version,
        tenant=message.tenant,
        principal=message.principal,
        role=message.role,
        chunker=chunker_of(message.chunker),
        server_time=datetime_of(message.server_time),
        limits=MappingProxyType(limits),
        condition=_condition_of(message.condition) if message.HasField("condition") else ServerCondition(),
        servers=tuple(map(_peer_of, message.servers)),
    )


def _peer_of(message: sv.PeerServer) -> PeerServer:
    return PeerServer(
        endpoint=message.endpoint,
        state=_PEER_STATES.get(message.state, "unknown"),
        version=message.version,
        start_time=datetime_of(message.start_time),
    )


def _condition_of(message: sv.ServerCondition) -> ServerCondition:
    return ServerCondition(
        takes_backups=message.takes_backups,
        clock_in_doubt=message.clock_in_doubt,
        clock_jump=timedelta_of(message.clock_jump),
        clock_wait=timedelta_of(message.clock_wait),
        damaged_packs=message.damaged_packs,
        damaged_segments=message.damaged_segments,
        damaged_footers=message.damaged_footers,
        warnings=tuple(message.warnings),
        missing_objects=message.missing_objects,
        hidden_objects=message.hidden_objects,
        lock=_lock_of(message.object_lock) if message.HasField("object_lock") else None,
        second_site=_second_site_of(message.second_site) if message.HasField("second_site") else None,
    )


def _lock_of(message: sv.StoreLock) -> StoreLock:
    return StoreLock(
        promise=timedelta_of(message.promise),
        packs_until=datetime_of(message.packs_until) if message.HasField("packs_until") else None,
        records_until=datetime_of(message.records_until) if message.HasField("records_until") else None,
        late=message.late,
    )


def _second_site_of(message: sv.SecondSite) -> SecondSite:
    return SecondSite(
        lag=timedelta_of(message.lag) if message.HasField("lag") else None,
        bytes_behind=message.bytes_behind,
        late=message.late,
    )


def timedelta_of(message: duration_pb2.Duration) -> datetime.timedelta:
    """A Duration as a timedelta, cut to microseconds. Raises ProtocolError."""
    try:
        return datetime.timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
    except OverflowError:
        raise ProtocolError(f"The server sent a duration of {message.seconds} s.") from None
