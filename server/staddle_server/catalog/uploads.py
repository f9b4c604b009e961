"""Uploads: begun, resumed, moved on by checkpoints, and closed by exactly one of commit, abort and expiry."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.exc import IntegrityError
from staddle._base.figures import counted

from staddle_server.base import errors, limits
from staddle_server.base.clock import NS
from staddle_server.base.types import PackSummary, UploadState
from staddle_server.catalog import begin, commit, runs, schema
from staddle_server.catalog.database import (
    Database,
    insert_or_ignore,
    later,
    locking,
    rows_in,
    together,
)
from staddle_server.catalog.decisions import append_pending
from staddle_server.catalog.packs import locked_packs, publish
from staddle_server.catalog.rows import (
    Page,
    backup_not_found,
    backup_of,
    lease_held,
    locked_upload,
    open_upload_row,
    page_of,
    require_current,
    require_epoch,
    require_open,
    require_upload,
    select_backups,
    select_uploads,
    unknown_token,
    upload_closed,
    upload_not_found,
    upload_of,
    upload_row,
    upload_value,
)
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import batches, check_id, pack_authors, unpack_authors
from staddle_server.catalog.values import (
    Backup,
    BeginUpload,
    Begun,
    DurableUpdate,
    ExpiredUpload,
    MissingChunk,
    NewBackup,
    PendingRecord,
    Principal,
    Terms,
    Upload,
)

FAILURE_CHARS_MAX: Final = 1000
_OVER: Final = {"durable": b"", "last_failure": ""}
"""Columns cleared when an upload ends: both may name paths."""

_u = schema.uploads.c
_m = schema.upload_missing.c
_d = schema.datasets.c
_b = schema.backups.c


class UploadRows:
    """The uploads of all tenants.

    Writing methods take the caller's epoch, and raise UPLOAD_NOT_FOUND, UPLOAD_CLOSED or STALE_EPOCH without
    changing anything.
    """

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def begin(self, spec: BeginUpload) -> Begun:
        """Open an upload, replay the answer to this request id, or take over an open upload.

        A new upload creates its dataset if necessary, and gets its resolved kind and its base, in one
        transaction.

        BAD_FIELD; REQUEST_ID_REUSED; ROOT_DIFFERS; NO_BASE.
        """
        begin.check_begin(spec)
        try:
            return self._begin(spec)
        except IntegrityError:
            if not spec.request_id:
                raise
            # The same request has begun an upload meanwhile: this is its replay.
            return self._begin(spec)

    def _begin(self, spec: BeginUpload) -> Begun:
        with self._database.write(erase=True) as connection:
            tenant_row = self._tenants.row(connection, spec.principal.tenant)
            return begin.begin(connection, tenant_row, spec)

    def get(self, tenant: bytes, upload: bytes) -> Upload:
        """Return the upload, in whatever state. UPLOAD_NOT_FOUND."""
        with self._database.look_up() as connection:
            return upload_value(connection, self._tenants.row(connection, tenant), upload)

    def get_by_request(self, tenant: bytes, request_id: str) -> Upload:
        """Return the upload that this request id began or took over. UPLOAD_NOT_FOUND."""
        requests = schema.upload_requests
        with self._database.read() as connection:
            mine = requests.c.tenant == self._tenants.row(connection, tenant)
            query = select_uploads().join(requests, requests.c.upload == _u.id)
            row = connection.execute(query.where(mine, requests.c.request_id == request_id)).one_or_none()
        if row is None:
            raise upload_not_found(request_id)
        return upload_of(row)

    def list_open(self, tenant: bytes, dataset: str, after: bytes, limit: int) -> Page[Upload]:
        """Return at most `limit` open uploads by id after `after` (empty for the first ones); `dataset` ""
        means all.
        """
        with self._database.read() as connection:
            mine = (_u.tenant == self._tenants.row(connection, tenant), schema.IS_OPEN, _u.id > after)
            query = select_uploads().where(*mine).order_by(_u.id)
            if dataset:
                query = query.where(_d.name == dataset)
            return page_of(connection, query, limit, upload_of)

    def resume(
        self,
        tenant: bytes,
        upload: bytes,
        principal: Principal,
        now_ns: int,
        terms: Terms,
        *,
        alive_ns: int | None = None,
        server: bytes = b"",
    ) -> Upload:
        """Take the upload over: raise its epoch, which refuses the previous writer from now on, and renew
        lease and life. From now on `server` writes it.

        LEASE_HELD while another principal's lease lasts; UPLOAD_CLOSED also if its life was over at
        `alive_ns` (`now_ns` unless given).
        """
        with self._database.write(erase=True) as connection:
            tenant_row = self._tenants.row(connection, tenant)
            row = upload_row(connection, tenant_row, upload)
            require_open(upload, row.state)
            if row.expires_ns <= (now_ns if alive_ns is None else alive_ns):
                raise upload_closed(row.id, UploadState.EXPIRED)
            if row.token != principal.token and terms.holds(row.lease_expires_ns, now_ns):
                raise lease_held(row)
            later(
                connection,
                update(schema.uploads)
                .where(_u.id == upload)
                .values(
                    epoch=row.epoch + 1,
                    token=principal.token,
                    principal=principal.name,
                    server=server,
                    **terms.expiries(now_ns),
                ),
            )
            runs.taken_over(connection, upload, principal.name)
            return upload_value(connection, tenant_row, upload)

    def renew(self, tenant: bytes, upload: bytes, epoch: int, *, now_ns: int, terms: Terms) -> Upload:
        """Extend lease and life from now by these terms."""
        with self._database.write(erase=True) as connection:
            tenant_row = self._tenants.row(connection, tenant)
            open_upload_row(connection, tenant_row, upload, epoch)
            later(connection, update(schema.uploads).where(_u.id == upload).values(**terms.expiries(now_ns)))
            return upload_value(connection, tenant_row, upload)

    def standing(self, uploads: Sequence[bytes]) -> dict[bytes, tuple[UploadState, int]]:
        """Return state and epoch of each of these uploads that exists, of any tenant."""
        columns = (_u.id, _u.state, _u.epoch)
        with self._database.look_up() as connection:
            found = [
                row for some in batches(uploads) for row in rows_in(connection, columns, {}, _u.id, some)
            ]
        return {bytes(upload): (UploadState(state), epoch) for upload, state, epoch in found}

    def set_failure(self, tenant: bytes, upload: bytes, epoch: int, text: str) -> bool:
        """Store why the upload's last stream or call failed; an empty text for no failure.

        Return whether it was stored: reports of a former writer or about a closed upload are ignored.
        """
        with self._database.write(erase=True) as connection:
            mine = _u.tenant == self._tenants.row(connection, tenant)
            noted = connection.execute(
                update(schema.uploads)
                .where(_u.id == upload, mine, schema.IS_OPEN, _u.epoch == epoch)
                .values(last_failure=text[:FAILURE_CHARS_MAX])
            )
            return bool(noted.rowcount)

    def checkpoint(
        self,
        tenant: bytes,
        upload: bytes,
        epoch: int,
        *,
        packs: Sequence[PackSummary],
        durable: DurableUpdate,
        now_ns: int,
        terms: Terms,
        wrote: bool = True,
        missing_added: Iterable[MissingChunk] = (),
        missing_removed: Iterable[bytes] = (),
    ) -> int:
        """Publish durable packs, index their chunks, and move the durable point: all or nothing.

        `wrote`: the upload's holder has sent something, and counts among its authors. Renews lease and life,
        and returns when the lease expires. STALE_EPOCH also for a pack begun under another epoch; TOO_MANY
        for more than MISSING_CHUNKS_MAX missing chunks.
        """
        expiries = terms.expiries(now_ns)
        with self._database.write(erase=True) as connection:
            tenant_row = self._tenants.row(connection, tenant)
            rows, pack_rows = together(
                connection, locked_upload(tenant_row, upload), locked_packs(tenant_row, packs)
            )
            row = _the_upload(upload, rows)
            require_current(row, epoch)
            publish(connection, row, pack_rows, packs)
            _change_missing(connection, upload, missing_added, missing_removed)
            later(
                connection,
                update(schema.uploads)
                .where(_u.id == upload)
                .values(
                    durable=durable.blob,
                    position=durable.position,
                    entry_count=durable.entry_count,
                    data_bytes=durable.data_bytes,
                    authors=_authors(row, wrote=wrote),
                    **expiries,
                ),
            )
        return expiries["lease_expires_ns"]

    def missing(self, tenant: bytes, upload: bytes, after: bytes, limit: int) -> list[MissingChunk]:
        """Return at most `limit` missing chunks by digest, after `after` (empty for the first ones)."""
        with self._database.read() as connection:
            require_upload(connection, self._tenants.row(connection, tenant), upload)
            query = select(_m.digest, _m.length).where(_m.upload == upload, _m.digest > after)
            rows = connection.execute(query.order_by(_m.digest).limit(limit))
            return [MissingChunk(*row) for row in rows]

    def commit(
        self,
        tenant: bytes,
        upload: bytes,
        epoch: int,
        *,
        packs: Sequence[PackSummary],
        backup: NewBackup,
        record: Callable[[Backup], bytes],
        now_ns: int,
        accepted: tuple[int, int],
        token_ns: int | None = None,
        wrote: bool = True,
    ) -> Backup:
        """Make the upload a backup, durably, with the next number in its dataset.

        `record` encodes what the store records of the backup; it is kept as pending under the backup's id in
        the same transaction. `wrote`: as in `checkpoint`. `accepted`: the entries and bytes that the commit
        stated, kept to compare with a replay. The token must be valid at `token_ns` (`now_ns` unless given).

        A replay under the same epoch returns the original backup, and changes nothing (BACKUP_NOT_FOUND once
        it was purged). MISSING_CHUNKS, with their count, leaves the upload open and unchanged, as does
        UNAUTHENTICATED if the token that holds the upload is revoked or expired, and NewDamageError if damage
        was marked since the backup's damage epoch. The upload's claims stay until a later mark has read the
        manifest.
        """
        check_id("backup", backup.id)
        with self._database.write(erase=True) as connection:
            tenant_row = self._tenants.row(connection, tenant)
            valid_ns = now_ns if token_ns is None else token_ns
            found = commit.committing(connection, tenant_row, upload, packs, valid_ns)
            row = _the_upload(upload, found.uploads)
            if row.state == UploadState.COMMITTED:
                require_epoch(upload, row.epoch, epoch)
                return _backup(connection, row.backup)
            require_current(row, epoch)
            if not found.tokens:
                raise unknown_token()
            publish(connection, row, found.packs, packs)
            _require_complete(upload, found.counts[0].missing)
            authors = _authors(row, wrote=wrote)
            made = commit.insert_backup(connection, found, backup, authors, now_ns)
            later(
                connection,
                update(schema.uploads)
                .where(_u.id == upload)
                .values(
                    state=UploadState.COMMITTED.value,
                    backup=backup.id,
                    entry_count=accepted[0],
                    data_bytes=accepted[1],
                    authors=authors,
                    **_OVER,
                ),
            )
            pending = PendingRecord(made.id, tenant, record(made))
            append_pending(connection, found.chains[0], [pending], damage_epoch=backup.damage_epoch)
            return made

    def abort(self, tenant: bytes, upload: bytes, epoch: int, now_ns: int) -> Upload:
        """Abort the upload and end its claims. A replay changes nothing."""
        with self._database.write(erase=True) as connection:
            tenant_row = self._tenants.row(connection, tenant)
            row = upload_row(connection, tenant_row, upload)
            if row.state == UploadState.ABORTED:
                require_epoch(upload, row.epoch, epoch)
            else:
                open_upload_row(connection, tenant_row, upload, epoch)
                _close(connection, upload, UploadState.ABORTED)
                runs.ended(connection, upload, runs.ABORTED, now_ns)
            return upload_value(connection, tenant_row, upload)

    def shorten(self, now_ns: int, life_s: float) -> None:
        """Shorten open uploads that have over twice this life left to one life from now: a clock that was
        ahead extended them.
        """
        life_ns = int(life_s * NS)
        long = (schema.IS_OPEN, _u.expires_ns > now_ns + 2 * life_ns)
        with self._database.read() as connection:
            if connection.execute(select(_u.id).where(*long).limit(1)).first() is None:
                return
        with self._database.write(erase=True) as connection:
            connection.execute(update(schema.uploads).where(*long).values(expires_ns=now_ns + life_ns))

    def expire(self, now_ns: int, limit: int = 1000) -> list[ExpiredUpload]:
        """Abort at most `limit` open uploads of all tenants whose life is over, and return them."""
        query = (
            select(_u.id, schema.tenants.c.id.label("tenant_id"))
            .join_from(schema.uploads, schema.tenants, _u.tenant == schema.tenants.c.row)
            .where(schema.IS_OPEN, _u.expires_ns <= now_ns)
            .order_by(_u.expires_ns)
            .limit(limit)
        )
        with self._database.read() as connection:
            if connection.execute(query).first() is None:
                return []
        with self._database.write(erase=True) as connection:
            over = connection.execute(locking(query, of=schema.uploads)).all()
            for row in over:
                _close(connection, row.id, UploadState.EXPIRED)
                runs.ended(connection, row.id, runs.EXPIRED, now_ns)
            return [ExpiredUpload(row.tenant_id, row.id) for row in over]


def _close(connection: Connection, upload: bytes, state: UploadState) -> None:
    later(connection, delete(schema.claims).where(schema.claims.c.upload == upload))
    later(connection, delete(schema.upload_missing).where(_m.upload == upload))
    later(connection, update(schema.uploads).where(_u.id == upload).values(state=state.value, **_OVER))


def _change_missing(
    connection: Connection, upload: bytes, added: Iterable[MissingChunk], removed: Iterable[bytes]
) -> None:
    for digests in batches(removed):
        later(connection, delete(schema.upload_missing).where(_m.upload == upload, _m.digest.in_(digests)))
    any_added = False
    for some in batches(added):
        any_added = True
        later(
            connection,
            insert_or_ignore(connection, schema.upload_missing),
            [{"upload": upload, "digest": digest, "length": length} for digest, length in some],
        )
    if any_added and _missing_count(connection, upload) > limits.MISSING_CHUNKS_MAX:
        raise errors.Exhausted(
            "TOO_MANY",
            f"Upload {upload.hex()} refers to more than {limits.MISSING_CHUNKS_MAX} missing chunks: "
            "send chunks before the entries that refer to them",
        )


def _missing_count(connection: Connection, upload: bytes) -> int:
    return connection.execute(commit.MISSING_COUNT, {"upload": upload}).scalar_one()


def _the_upload(upload: bytes, rows: Sequence[Any]) -> Any:
    if not rows:
        raise upload_not_found(upload)
    return rows[0]


def _require_complete(upload: bytes, count: int) -> None:
    if count:
        raise errors.Precondition(
            "MISSING_CHUNKS",
            f"Entries of upload {upload.hex()} refer to {counted(count, 'missing chunk')}: send them (GetUpload lists "
            "them), then commit again",
            upload=upload.hex(),
            count=str(count),
        )


def _authors(upload: Any, *, wrote: bool) -> str:
    if not wrote:
        return str(upload.authors)
    return pack_authors(unpack_authors(upload.authors).and_writer(upload.principal))


def _backup(connection: Connection, backup: bytes) -> Backup:
    row = connection.execute(select_backups().where(_b.id == backup)).one_or_none()
    if row is None:  # deleted and purged long after the replayed commit
        raise backup_not_found(backup)
    return backup_of(row)
