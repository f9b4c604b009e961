"""The life of uploads: who writes which one, and how idle and expired ones end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Final, NamedTuple

from staddle_server.base.clock import NS, Clock
from staddle_server.base.errors import Precondition, StaddleError
from staddle_server.base.limits import LEASE_S, UPLOAD_LIFE_S, UPLOADS_OPEN_MAX, UPLOADS_OPEN_TENANT_MAX
from staddle_server.base.threads import Background, Threads
from staddle_server.base.types import EMPTY_ROOT, Entry, Root, TokenRole, UploadState
from staddle_server.catalog import Backup, BeginUpload, Catalog, Page, Principal, Terms, Upload, UploadRequest
from staddle_server.store.space import Space
from staddle_server.tenancy.clock_guard import ClockGuard, ClockInDoubt, Standing
from staddle_server.tenancy.pack_presence import Presence
from staddle_server.tenancy.records import finish_record
from staddle_server.tenancy.tenant import Tenant, Tenants
from staddle_server.upload import refusals
from staddle_server.upload.damaged_entries import LISTED_MAX, DamagedEntries, damaged_entries
from staddle_server.upload.progress import Progress, decode_progress
from staddle_server.upload.writer import UploadWriter

log = logging.getLogger(__name__)

HOUSEKEEPING_S: Final = 1.0
EXPIRY_S: Final = 60.0
STANDING_S: Final = 5.0
"""How often a server checks whether others took its uploads over, or ended them."""


class BegunUpload(NamedTuple):
    """The answer to BeginUpload. `replayed`: the same request has begun it before."""

    upload: Upload
    taken_over: bool
    damaged: list[Entry]
    more_damaged: bool
    replayed: bool


class Uploads:
    """All uploads of this server: opens them, finds their writers, ends them."""

    def __init__(
        self,
        catalog: Catalog,
        tenants: Tenants,
        clock: Clock,
        *,
        lease_s: float = LEASE_S,
        life_s: float = UPLOAD_LIFE_S,
        compress_threads: int | None = None,
        space: Space | None = None,
        server: bytes = b"",
        endpoint: str = "",
    ) -> None:
        """`space` is the disk space for what uploads have accepted and not yet written; None for no limit.

        `server` is this server's id in the catalog, `endpoint` the address that clients are given for it.
        """
        self._catalog = catalog
        self._tenants = tenants
        self._clock = clock
        self._server = server
        self._endpoint = endpoint
        self._guard = ClockGuard(catalog, clock)
        self._terms = Terms(lease_s, life_s)
        self._space = space
        if space is not None:
            space.count_unwritten(lambda: sum(writer.unwritten_bytes for writer in self._all()))
        self._presence = Presence(catalog, clock)
        self._compressors = Threads(
            compress_threads or min(8, os.cpu_count() or 1), thread_name_prefix="compress"
        )
        self._writers: dict[bytes, UploadWriter] = {}
        self._closing = False
        self._lock = threading.Lock()
        self._expiry_s = self._standing_s = clock.monotonic_s()
        self._keeper = Background("housekeeping", HOUSEKEEPING_S, self._keep_house)
        self._keeper.start()

    # ------------------------------------------------------------------ begin and take over

    def begin(self, principal: Principal, asked: UploadRequest, check: Callable[[], None]) -> BegunUpload:
        """Open an upload, or return the one that the request id or take_over names."""
        standing = self._guard.glance()
        spec = BeginUpload(
            upload=os.urandom(16),
            principal=principal,
            now_ns=self._clock.now_ns(),
            terms=self._terms_by(standing),
            # A backup that begins while the clock is behind must not look old once the clock is right.
            begin_ns=standing.latest_ns,
            alive_ns=standing.earliest_ns,
            server=self._server,
            **asdict(asked),
        )
        self._check_room(principal)
        tenant = self._tenants.get(principal.tenant)
        tenant.blobs.check_writable()
        if self._space is not None:
            self._space.check()
        begun = self._catalog.uploads.begin(spec)
        if not begun.replayed:
            self._open_writer(tenant, begun.upload)
        damaged = self.damaged(begun.upload, None, LISTED_MAX, check)
        return BegunUpload(begun.upload, begun.taken_over, damaged.entries, damaged.more, begun.replayed)

    def resume(self, principal: Principal, upload_id: bytes) -> Upload:
        """Take an upload over; the returned durable point is final."""
        self._check_room(principal, upload_id)
        standing = self._guard.look()
        upload = self._catalog.uploads.resume(
            principal.tenant,
            upload_id,
            principal,
            self._clock.now_ns(),
            self._terms_by(standing),
            alive_ns=standing.earliest_ns,
            server=self._server,
        )
        self._open_writer(self._tenants.get(principal.tenant), upload)
        return upload

    def _terms_now(self) -> Terms:
        """Return the terms from now on."""
        return self._terms_by(self._guard.glance())

    def _terms_by(self, standing: Standing) -> Terms:
        """Return the terms for this state of the clock.

        A life that begins while it is behind must not end once it is right.
        """
        behind_s = (standing.latest_ns - standing.wall_ns) / NS
        return self._terms._replace(life_s=self._terms.life_s + behind_s)

    def _check_room(self, principal: Principal, upload: bytes | None = None) -> None:
        """Check that an upload, or this one, may get a writer here.

        Raises:
            Exhausted: TOO_MANY.
            Unavailable: DRAINING.

        """
        with self._lock:
            if self._closing:
                raise refusals.draining()
            if upload in self._writers:
                return
            if len(self._writers) >= UPLOADS_OPEN_MAX:
                raise refusals.too_many(UPLOADS_OPEN_MAX, "")
            own = sum(writer.upload.tenant == principal.tenant for writer in self._writers.values())
            if own >= UPLOADS_OPEN_TENANT_MAX:
                raise refusals.too_many(UPLOADS_OPEN_TENANT_MAX, " of this tenant")

    def _open_writer(self, tenant: Tenant, upload: Upload) -> None:
        """End the writers of older epochs, and begin the one of this epoch."""
        with self._lock:
            old = self._writers.get(upload.id)
        if old is not None and old.upload.epoch < upload.epoch:
            old.close(refusals.taken_over(upload.id, old.upload.epoch, upload.epoch))
        writer = UploadWriter(
            tenant,
            self._catalog,
            upload=upload,
            base=self.base_root(upload),
            presence=self._presence,
            compressors=self._compressors,
            clock=self._clock,
            look_at_clock=self._guard.glance,
            terms=self._terms_now,
            space=self._space,
        )
        refusal = self._install(writer)
        if refusal is not None:
            writer.close(refusal)
            raise refusal

    def _install(self, writer: UploadWriter) -> StaddleError | None:
        """Make this the upload's writer; if another one has its turn, return why not."""
        upload = writer.upload
        with self._lock:
            if self._closing:
                return refusals.draining()
            now = self._writers.get(upload.id)
            if now is not None and now.upload.epoch > upload.epoch:
                return refusals.taken_over(upload.id, upload.epoch, now.upload.epoch)
            self._writers[upload.id] = writer
        if now is not None:
            now.close(refusals.taken_over(upload.id, now.upload.epoch, upload.epoch))
        return None

    def base_root(self, upload: Upload) -> Root:
        """Return the manifest that the upload starts from; even purged, it stays while the upload is open."""
        if upload.base and upload.base_root is None and upload.state is UploadState.OPEN:
            return self._catalog.backups.get(upload.tenant, upload.base).root  # or the error, that it is lost
        return upload.base_root or EMPTY_ROOT  # an ended upload does not need it

    # ------------------------------------------------------------------ finding

    def get(self, principal: Principal, *, upload_id: bytes | None = None, request_id: str = "") -> Upload:
        """Return an upload by its id or by the request that began it."""
        if upload_id is not None:
            return self._catalog.uploads.get(principal.tenant, upload_id)
        return self._catalog.uploads.get_by_request(principal.tenant, request_id)

    def list_open(self, principal: Principal, dataset: str, after: bytes, limit: int) -> Page[Upload]:
        """Return at most `limit` open uploads of the tenant (of one dataset, if named) by id,
        after `after`.
        """
        return self._catalog.uploads.list_open(principal.tenant, dataset, after, limit)

    def writer(self, principal: Principal, upload_id: bytes, epoch: int) -> UploadWriter:
        """Return the writer of an upload, for a caller that holds it and states its epoch.

        Raises:
            NotFound, Conflict (STALE_EPOCH, RESUME_REQUIRED, LEASE_HELD), Precondition (UPLOAD_CLOSED,
                WRONG_SERVER).

        """
        with self._lock:
            writer = self._writers.get(upload_id)
        if writer is None or writer.upload.tenant != principal.tenant or writer.closed is not None:
            raise self._no_writer(self._held(principal, upload_id, epoch))
        if writer.upload.epoch < epoch:  # another server took the upload over since
            raise self._no_writer(self._held(principal, upload_id, epoch))
        refusals.check_open(writer.upload, epoch)
        if writer.upload.token != principal.token:
            self._held(principal, upload_id, epoch)
        return writer

    def _no_writer(self, upload: Upload) -> StaddleError:
        """Return the error for an open upload that has no writer here: another server has it, or none."""
        elsewhere = self._catalog.servers.writing_elsewhere(upload.server, self._server)
        if elsewhere is not None:
            return refusals.wrong_server(upload.id, elsewhere.identity.endpoint)
        return refusals.resume_required(
            upload.id,
            "has no writer here: the server restarted, or the upload was idle, or a write failed, or its server is gone",
        )

    def endpoint_of(self, upload: Upload) -> str:
        """Return where to send the calls that write this upload: to the server that has it, or to this one;
        empty for the address that the caller uses.
        """
        if upload.state is UploadState.OPEN:
            elsewhere = self._catalog.servers.writing_elsewhere(upload.server, self._server)
            if elsewhere is not None:
                return elsewhere.identity.endpoint
        return self._endpoint

    def _held(self, principal: Principal, upload_id: bytes, epoch: int) -> Upload:
        """Return the open upload, if the caller holds it in this epoch. An epoch has one holder to its end.

        Raises:
            NotFound, Precondition (UPLOAD_CLOSED), Conflict (STALE_EPOCH, LEASE_HELD, RESUME_REQUIRED).

        """
        upload = self._catalog.uploads.get(principal.tenant, upload_id)
        refusals.check_open(upload, epoch)
        refusals.check_held(upload, principal.token, self._clock.now_ns(), self._terms)
        return upload

    def missing(self, upload: Upload, after: bytes, limit: int) -> list[bytes]:
        """Return digests of missing chunks that the upload's entries refer to, as of its durable point, in
        order.
        """
        return [
            missing.digest
            for missing in self._catalog.uploads.missing(upload.tenant, upload.id, after, limit)
        ]

    def damaged(
        self, upload: Upload, after: bytes | None, limit: int, check: Callable[[], None]
    ) -> DamagedEntries:
        """Return entries of the upload's base that cannot be restored completely; `check` raises once the
        caller is gone.
        """
        root = self.base_root(upload)
        if not upload.damage_epoch:  # no damage was ever found in this tenant
            return DamagedEntries([], more=False)
        return damaged_entries(
            self._tenants.get(upload.tenant), self._catalog, root, after, limit, check=check
        )

    # ------------------------------------------------------------------ going on and ending

    def checkpoint(self, principal: Principal, upload_id: bytes, epoch: int) -> Progress:
        """Make everything that the upload received durable."""
        return self.writer(principal, upload_id, epoch).checkpoint()

    def note_failure(self, writer: UploadWriter, why: str) -> Progress:
        """Make a broken stream's data durable, and record the reason; return the durable point."""
        upload = writer.upload
        try:
            writer.checkpoint()
        except StaddleError as e:
            log.warning(
                "upload %s could not be made durable when its stream broke: %s", upload.id.hex(), e.message
            )
        try:
            self._catalog.uploads.set_failure(upload.tenant, upload.id, upload.epoch, why)
            return decode_progress(self._catalog.uploads.get(upload.tenant, upload.id).durable)
        except StaddleError as e:
            log.warning("upload %s: its failure could not be recorded: %s", upload.id.hex(), e.message)
            return Progress()

    def renew(self, principal: Principal, upload_id: bytes, epoch: int) -> Upload:
        """Extend the upload's lease and life. Only its holder may."""
        self._held(principal, upload_id, epoch)
        return self._catalog.uploads.renew(
            principal.tenant,
            upload_id,
            epoch,
            now_ns=self._clock.now_ns(),
            terms=self._terms_now(),
        )

    def commit(
        self,
        principal: Principal,
        upload_id: bytes,
        epoch: int,
        entry_count: int,
        data_bytes: int,
        *,
        problem_count: int = 0,
    ) -> Backup:
        """Commit; a replay finishes what the first attempt left, and returns the same answer.

        Raises:
            AlreadyExists: REQUEST_ID_REUSED, the upload was committed with other counts.

        """
        try:
            writer = self.writer(principal, upload_id, epoch)
            try:
                return writer.commit(entry_count, data_bytes, problem_count)
            finally:
                self._forget(writer)
        except Precondition as e:
            if e.reason != "UPLOAD_CLOSED":
                raise
            upload = self._committed(principal, upload_id, epoch, e)
        if (entry_count, data_bytes) != (upload.entry_count, upload.data_bytes):
            raise refusals.other_counts(upload, entry_count, data_bytes)
        return self.backup_of(upload)

    def backup_of(self, upload: Upload) -> Backup:
        """Return the backup that a committed upload made, once its record is durable. BACKUP_NOT_FOUND: it was purged
        since.
        """
        backup = self._catalog.backups.get(upload.tenant, upload.backup)
        finish_record(self._tenants.get(upload.tenant), self._catalog, backup.id)
        return backup

    def _committed(self, principal: Principal, upload_id: bytes, epoch: int, closed: Precondition) -> Upload:
        """Return the upload that an earlier commit of this epoch and principal closed.

        Raises:
            Precondition: `closed`, the upload ended otherwise, or another principal committed it.
            Conflict: STALE_EPOCH, another writer committed it.

        """
        upload = self._catalog.uploads.get(principal.tenant, upload_id)
        if upload.state is not UploadState.COMMITTED:
            raise closed
        if upload.epoch != epoch:
            raise refusals.taken_over(upload_id, epoch, upload.epoch)
        if upload.token != principal.token:
            raise closed
        return upload

    def abort(self, principal: Principal, upload_id: bytes, epoch: int) -> Upload:
        """Abort the upload; a replay changes nothing.

        Only its holder may, or an administrator of the tenant.
        """
        upload = self._catalog.uploads.get(principal.tenant, upload_id)
        if upload.epoch == epoch and principal.role is not TokenRole.ADMIN:
            refusals.check_held(upload, principal.token, self._clock.now_ns(), self._terms)
        upload = self._catalog.uploads.abort(principal.tenant, upload_id, epoch, self._clock.now_ns())
        self._end(upload_id, UploadState.ABORTED)
        return upload

    def _end(self, upload_id: bytes, state: UploadState) -> None:
        with self._lock:
            writer = self._writers.pop(upload_id, None)
        if writer is not None:
            writer.close(refusals.closed(upload_id, state))

    def _forget(self, writer: UploadWriter) -> None:
        with self._lock:
            if writer.closed is not None and self._writers.get(writer.upload.id) is writer:
                del self._writers[writer.upload.id]

    # ------------------------------------------------------------------ housekeeping

    def _keep_house(self) -> None:
        for writer in self._all():
            writer.keep(self._terms.lease_s)
            self._forget(writer)
        if self._clock.monotonic_s() - self._standing_s >= STANDING_S:
            self._standing_s = self._clock.monotonic_s()
            self._end_superseded()
        if self._clock.monotonic_s() - self._expiry_s >= EXPIRY_S:
            self._expiry_s = self._clock.monotonic_s()
            self._expire()

    @property
    def open_count(self) -> int:
        """How many uploads this server writes."""
        return len(self._all())

    def _all(self) -> Sequence[UploadWriter]:
        with self._lock:
            return list(self._writers.values())

    def _end_superseded(self) -> None:
        """End the writers whose uploads another server took over or ended: they only hold memory."""
        writers = self._all()
        if not writers:
            return
        try:
            standing = self._catalog.uploads.standing([writer.upload.id for writer in writers])
        except StaddleError as e:
            log.warning("it is unknown whether other servers took uploads over: %s", e.message)
            return
        for writer in writers:
            upload = writer.upload
            state, epoch = standing.get(upload.id, (UploadState.EXPIRED, upload.epoch))
            if state is not UploadState.OPEN:
                writer.close_unless_busy(refusals.closed(upload.id, state))
            elif epoch > upload.epoch:
                writer.close_unless_busy(refusals.taken_over(upload.id, upload.epoch, epoch))
            self._forget(writer)

    def _expire(self) -> None:
        try:
            now_ns = self._guard.require()
            self._catalog.uploads.shorten(now_ns, self._terms.life_s)
            for expired in self._catalog.uploads.expire(now_ns):
                self._end(expired.upload, UploadState.EXPIRED)
        except ClockInDoubt:
            pass  # the clock watch logs it, once
        except StaddleError as e:
            log.warning("the search for expired uploads failed: %s", e.message)

    def close(self) -> None:
        """Bring every upload to a checkpoint and end its writer; from now on no upload is opened."""
        with self._lock:
            self._closing = True
        self._keeper.stop()
        for writer in self._all():
            writer.put_aside("was suspended because the server is shutting down")
            self._forget(writer)
        self._compressors.shutdown()
