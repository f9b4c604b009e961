"""Shared queries: datasets, backups, uploads. Every lookup stays within its tenant."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, ScalarSelect, Select, and_, bindparam, or_, select
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from staddle_server.base import errors
from staddle_server.base.clock import NS
from staddle_server.base.limits import LISTED_BYTES_MAX
from staddle_server.base.types import ChangeCounts, Kind, Root, Scope, UploadState
from staddle_server.catalog import schema
from staddle_server.catalog.database import Query, later, locking, rows_in
from staddle_server.catalog.validation import rfc3339, unpack_authors, unpack_tags
from staddle_server.catalog.values import Backup, Hold, Upload

T = TypeVar("T")
ROWS_AT_ONCE: Final = 32
"""Rows of a list that one query loads."""

_d = schema.datasets.c
_b = schema.backups.c
_u = schema.uploads.c
_t = schema.tokens.c

# Every step of an upload needs these, and building a statement takes as long as running it.
_DATASET = select(schema.datasets).where(
    _d.tenant == bindparam("tenant"), _d.name == bindparam("name"), ~_d.reported
)
_THIS_UPLOAD = (_u.id == bindparam("upload"), _u.tenant == bindparam("tenant"))
_UPLOAD = locking(select(schema.uploads).where(*_THIS_UPLOAD))
_UPLOAD_LOCK = locking(select(_u.id).where(*_THIS_UPLOAD))
_base = schema.backups.alias("base_backup")


def dataset_row(connection: Connection, tenant_row: int, name: str) -> Row[Any]:
    """Return the dataset's row. NotFound DATASET_NOT_FOUND."""
    row = connection.execute(_DATASET, {"tenant": tenant_row, "name": name}).one_or_none()
    if row is None:
        raise errors.NotFound("DATASET_NOT_FOUND", f"Dataset {name!r} does not exist", dataset=name)
    return row


def dataset_number(tenant_row: int, name: str) -> ScalarSelect[Any]:
    """Return the dataset's row number for use inside a query; NULL if the dataset does not exist."""
    return select(_d.row).where(_d.tenant == tenant_row, _d.name == name).scalar_subquery()


# --- backups


def select_backups() -> Select[Any]:
    """Return the query for backups with the names of dataset and tenant; `backup_of` reads the rows."""
    return (
        select(
            schema.backups,
            _d.name.label("dataset_name"),
            _d.hold_ns.label("dataset_hold_ns"),
            _d.hold_reason.label("dataset_hold_reason"),
            schema.tenants.c.id.label("tenant_id"),
            schema.tenants.c.grace_s,
        )
        .join_from(schema.backups, schema.datasets, _b.dataset == _d.row)
        .join(schema.tenants, _b.tenant == schema.tenants.c.row)
    )


def backup_of(row: Any) -> Backup:
    """Return the value of a row of `select_backups`, or of an object with the same attributes."""
    return Backup(
        id=row.id,
        tenant=row.tenant_id,
        dataset=row.dataset_name,
        number=row.number,
        kind=Kind(row.kind),
        scope=Scope(row.scope),
        base=row.base,
        upload=row.upload,
        request_id=row.request_id,
        principal=row.principal,
        authors=unpack_authors(row.authors),
        begin_ns=row.begin_ns,
        commit_ns=row.commit_ns,
        deleted_ns=row.deleted_ns,
        root=Root(row.root_level, row.root_digest, row.entry_count, row.data_bytes),
        stored_bytes=row.stored_bytes,
        changes=ChangeCounts(
            row.added, row.content_changed, row.metadata_changed, row.removed, row.metadata_kept
        ),
        tags=unpack_tags(row.tags),
        host=row.host,
        source_root=row.source_root,
        purge_ns=_purge_ns(row),
        retain_until_ns=row.retain_until_ns,
        hold=hold_of(row.hold_ns, row.hold_reason),
        dataset_hold=hold_of(row.dataset_hold_ns, row.dataset_hold_reason),
    )


def lock_backup(connection: Connection, tenant_row: int, backup: bytes) -> Backup:
    """Lock a backup that is not purged: until this transaction ends, it and its dataset's holds stay
    unchanged.

    BACKUP_NOT_FOUND. Beginning an upload locks its base's row the same way, so one of the two sees the other.
    """
    this = (_b.id == backup, _b.tenant == tenant_row, schema.IS_KEPT)
    # The dataset first, as everywhere; not its key, which a beginning upload refers to.
    of_backup = select(_d.row).join_from(schema.backups, schema.datasets, _b.dataset == _d.row).where(*this)
    connection.execute(locking(of_backup, of=schema.datasets))
    connection.execute(locking(select(_b.id).where(*this)))
    row = connection.execute(select_backups().where(*this)).one_or_none()
    if row is None:
        raise backup_not_found(backup)
    return backup_of(row)


def backup_not_found(backup: bytes) -> errors.NotFound:
    """Return the error for a backup that this tenant does not have."""
    return errors.NotFound("BACKUP_NOT_FOUND", f"Backup {backup.hex()} does not exist", backup=backup.hex())


def hold_of(since_ns: int | None, reason: str) -> Hold | None:
    """Return a hold from its two columns."""
    return None if since_ns is None else Hold(reason, since_ns)


def _purge_ns(row: Any) -> int | None:
    if row.deleted_ns is None:
        return None
    return int(max(row.deleted_ns + row.grace_s * NS, row.retain_until_ns))


# --- pages of lists


class Page(list[T]):
    """The first values of a list: no more than were asked for, and of large ones fewer, but at least one.

    Attributes:
        more: Whether others follow.
        reached: In a list of backups, the number after which the next page begins; it may be that of one that is
            not listed. None if there is nothing after `before_number`.

    """

    more = False
    reached: int | None = None


def size_of(row: Row[Any]) -> int:
    """Return about how many bytes a row has: those of its texts."""
    return sum(len(value) for value in row if isinstance(value, str | bytes))


def page_of(
    connection: Connection, query: Select[Any], limit: int, value_of: Callable[[Row[Any]], T]
) -> Page[T]:
    """Return the first values of an ordered query: at most `limit`, of at most LISTED_BYTES_MAX bytes, and at
    least one. The rest is not loaded.
    """
    page: Page[T] = Page()
    size = 0
    while len(page) <= limit:
        # A driver may load all rows of an answer at once.
        step = min(ROWS_AT_ONCE, limit + 1 - len(page))
        with connection.execute(query.limit(step).offset(len(page))) as result:
            before = len(page)
            for row in result:
                size += size_of(row)
                if page and (len(page) == limit or size > LISTED_BYTES_MAX):
                    page.more = True
                    return page
                page.append(value_of(row))
        if len(page) - before < step:
            break
    return page


# --- uploads


def select_uploads() -> Select[Any]:
    """Return the query for uploads with what else `upload_of` reads: of dataset, tenant and base."""
    return (
        select(
            schema.uploads,
            _d.name.label("dataset_name"),
            schema.tenants.c.id.label("tenant_id"),
            schema.tenants.c.damage_epoch,
            *root_columns(_base.c),
        )
        .join_from(schema.uploads, schema.datasets, _u.dataset == _d.row)
        .join(schema.tenants, _u.tenant == schema.tenants.c.row)
        .join(_base, _u.base == _base.c.id, isouter=True)
    )


def root_columns(backup: ReadOnlyColumnCollection[str, Any]) -> list[ColumnElement[Any]]:
    """Return the columns of a base's manifest root, as `upload_of` reads them."""
    return [
        backup.root_level.label("base_level"),
        backup.root_digest.label("base_digest"),
        backup.entry_count.label("base_entries"),
        backup.data_bytes.label("base_bytes"),
    ]


_UPLOAD_VALUE = select_uploads().where(*_THIS_UPLOAD)


def upload_of(row: Any) -> Upload:
    """Return the value of a row of `select_uploads`, or of an object with the same attributes."""
    base = None
    if row.base_digest is not None:
        base = Root(row.base_level, row.base_digest, row.base_entries, row.base_bytes)
    return Upload(
        id=row.id,
        tenant=row.tenant_id,
        dataset=row.dataset_name,
        request_id=row.request_id,
        token=row.token,
        principal=row.principal,
        authors=unpack_authors(row.authors),
        asked_kind=Kind(row.asked_kind),
        kind=Kind(row.kind),
        scope=Scope(row.scope),
        base=row.base,
        tags=unpack_tags(row.tags),
        host=row.host,
        root=row.root,
        new_root=row.new_root,
        fingerprint=row.fingerprint,
        state=UploadState(row.state),
        epoch=row.epoch,
        lease_expires_ns=row.lease_expires_ns,
        expires_ns=row.expires_ns,
        begin_ns=row.begin_ns,
        durable=row.durable,
        position=row.position,
        entry_count=row.entry_count,
        data_bytes=row.data_bytes,
        last_failure=row.last_failure,
        backup=row.backup,
        server=row.server,
        base_root=base,
        damage_epoch=row.damage_epoch,
    )


def upload_value(connection: Connection, tenant_row: int, upload: bytes) -> Upload:
    """Return the upload. NotFound UPLOAD_NOT_FOUND."""
    row = connection.execute(_UPLOAD_VALUE, {"upload": upload, "tenant": tenant_row}).one_or_none()
    if row is None:
        raise upload_not_found(upload)
    return upload_of(row)


def locked_upload(tenant_row: int, upload: bytes) -> Query:
    """Return the query for the upload's own row, locked against changes until the transaction ends."""
    return Query(_UPLOAD, {"upload": upload, "tenant": tenant_row})


def lock_upload(connection: Connection, tenant_row: int, upload: bytes) -> None:
    """Lock the upload's row no later than the next statement, which sees it as it is then."""
    later(connection, _UPLOAD_LOCK, {"upload": upload, "tenant": tenant_row})


def upload_row(connection: Connection, tenant_row: int, upload: bytes) -> Row[Any]:
    """Return the upload's own row, locked against changes until this transaction ends."""
    row = connection.execute(*locked_upload(tenant_row, upload)).one_or_none()
    if row is None:
        raise upload_not_found(upload)
    return row


def open_upload_row(connection: Connection, tenant_row: int, upload: bytes, epoch: int) -> Row[Any]:
    """Return the upload's own row, locked, if it is open and `epoch` is current.

    Otherwise UPLOAD_NOT_FOUND, UPLOAD_CLOSED or STALE_EPOCH. All changes of an upload meet on this lock: of
    commit, abort, expiry and take-over one comes first, and the others see it.
    """
    row = upload_row(connection, tenant_row, upload)
    require_current(row, epoch)
    return row


def require_current(upload: Row[Any], epoch: int) -> None:
    """Raise UPLOAD_CLOSED or STALE_EPOCH unless this row's upload is open under the epoch."""
    require_open(upload.id, upload.state)
    require_epoch(upload.id, upload.epoch, epoch)


def require_upload(connection: Connection, tenant_row: int, upload: bytes) -> None:
    """Raise NotFound UPLOAD_NOT_FOUND unless the tenant has this upload."""
    if not rows_in(connection, (_u.id,), {_u.tenant: tenant_row}, _u.id, (upload,)):
        raise upload_not_found(upload)


def require_open(upload: bytes, state: int) -> None:
    """Raise UPLOAD_CLOSED unless this state of the upload is OPEN."""
    if state != UploadState.OPEN:
        raise upload_closed(upload, UploadState(state))


def require_epoch(upload: bytes, found: int, epoch: int) -> None:
    """Raise STALE_EPOCH unless `epoch` is the upload's current one."""
    if found != epoch:
        raise errors.Conflict(
            "STALE_EPOCH",
            f"Another writer has taken upload {upload.hex()} over (epoch {found}, not {epoch}): stop writing",
            upload=upload.hex(),
            epoch=str(found),
        )


def upload_closed(upload: bytes, state: UploadState) -> errors.Precondition:
    """Return the error for an upload that is no longer open."""
    said = state.name.lower()
    return errors.Precondition(
        "UPLOAD_CLOSED",
        f"Upload {upload.hex()} is {said}: begin a new one",
        upload=upload.hex(),
        state=said,
    )


def upload_not_found(upload: bytes | str) -> errors.NotFound:
    """Return the error for an upload that this tenant does not have; a text is a request id."""
    if isinstance(upload, str):
        return errors.NotFound("UPLOAD_NOT_FOUND", f"No upload has the request id {upload!r}", upload="")
    return errors.NotFound("UPLOAD_NOT_FOUND", f"Upload {upload.hex()} does not exist", upload=upload.hex())


def lease_held(upload: Row[Any] | Upload) -> errors.Conflict:
    """Return the error for a caller that does not hold the upload's lease."""
    until = rfc3339(upload.lease_expires_ns)
    return errors.Conflict(
        "LEASE_HELD",
        f"{upload.principal!r} is writing upload {upload.id.hex()}, with a lease until {until}: wait until then, and take "
        "it over with ResumeUpload",
        upload=upload.id.hex(),
        lease_expire_time=until,
    )


# --- tokens


def token_is_valid(now_ns: int) -> ColumnElement[bool]:
    """Return the condition that a token is neither revoked nor expired."""
    return and_(_t.revoked_ns.is_(None), or_(_t.expires_ns.is_(None), _t.expires_ns > now_ns))


def valid_token(upload: bytes, now_ns: int) -> Query:
    """Return the query for the id of the token that holds the upload, which finds it only while it is valid."""
    holder = select(_u.token).where(_u.id == upload).scalar_subquery()
    return Query(select(_t.id).where(_t.id == holder, token_is_valid(now_ns)))


def unknown_token() -> errors.Unauthenticated:
    """Return the error for an invalid token; it does not say which of the reasons applies."""
    return errors.Unauthenticated(
        "UNAUTHENTICATED", "This token is unknown, revoked or expired: get a new one"
    )
