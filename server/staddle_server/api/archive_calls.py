"""Backups as archives, out and in: what a transport with streams of bytes offers beside the RPCs."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from blake3 import blake3
from staddle.v1 import service_pb2 as sv

from staddle_server.api import archives, convert
from staddle_server.api.gate import Call
from staddle_server.base.errors import AlreadyExists, NotFound, StaddleError
from staddle_server.base.limits import RUN_REASON_BYTES_MAX
from staddle_server.base.types import UploadState
from staddle_server.catalog import Backup, Principal, Upload, UploadRequest
from staddle_server.manifest.entries import check_path
from staddle_server.restore.browse import Reads, Selector
from staddle_server.store.compressed_streams import Pieces, inflated
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.lifecycle.runs import FailedRun, RunHistory
from staddle_server.upload.tar_reader import TarReader
from staddle_server.upload.tar_upload import TakenTar, TarUpload
from staddle_server.upload.uploads import Uploads
from staddle_server.upload.writer import UploadWriter

log = logging.getLogger(__name__)
ATTEMPTS_MAX: Final = 100
"""Tries of one request with a key."""


class OpenedArchive(NamedTuple):
    """An archive of a backup, whose pieces are made as they are taken."""

    backup: Backup
    pieces: Iterator[bytes]


class SentTar(NamedTuple):
    """A tar that becomes a backup.

    Attributes:
        upload: What its upload begins with.
        removed: Paths that the backup does not have from its base.
        compression: "", "gzip" or "zstd".
        pieces: Its bytes. The end of the iterator is the end of the complete body.
        key: What its client calls this request in each try; "": it will not try again.

    """

    upload: UploadRequest
    removed: Sequence[bytes]
    compression: str
    pieces: Iterator[bytes]
    key: str = ""


class ArchiveCalls:
    """Answers calls whose request or answer is an archive."""

    def __init__(self, reads: Reads, uploads: Uploads, tenants: Tenants, runs: RunHistory) -> None:
        self._reads = reads
        self._uploads = uploads
        self._tenants = tenants
        self._runs = runs

    # ------------------------------------------------------------------ out

    def archive(
        self, dataset: str, selector: Selector, paths: Sequence[bytes], form: str, call: Call
    ) -> OpenedArchive:
        """Return an archive of a backup, or of these paths of it.

        Raises:
            NotFound: DATASET_NOT_FOUND, BACKUP_NOT_FOUND, PATH_NOT_FOUND.
            BadRequest: A path is invalid, or a zip would have too many entries.

        """
        call.facts["dataset"] = dataset
        for path in paths:
            check_path(path)
        backup = self._reads.pick(call.principal, convert.dataset_name(dataset), selector)
        call.facts["backup"] = backup.id.hex()
        if form == "zip" and not paths and backup.root.entries > archives.ZIP_ENTRIES_MAX:
            raise archives.too_many_for_zip()
        restore = self._reads.restore(call.principal, backup, data=True, refs=False, check=call.check)
        chosen = restore.select(paths, exact=False)
        large = self._tenants.get(call.principal.tenant).large

        def noted(pieces: Iterator[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                call.facts.update(entries=restore.totals.entries, bytes=restore.totals.data_bytes)
                yield piece

        def lacks(left_out: int, reduced: int) -> None:
            call.facts.update(left_out=left_out, reduced=reduced)

        pieces = archives.archive_pieces(restore, chosen, form, backup.begin_ns, large=large, on_lack=lacks)
        return OpenedArchive(backup, noted(pieces))

    # ------------------------------------------------------------------ in

    def take(self, sent: SentTar, call: Call) -> sv.CommitUploadResponse:
        """Make a backup of a tar, all or nothing; or, for a key whose request made one before, return that.

        Raises:
            AlreadyExists: REQUEST_ID_REUSED, the key was that of another request.
            TarError, and whatever an upload may raise. Then there is neither a backup nor an upload, and the run
                has the reason.

        """
        call.facts["dataset"] = sent.upload.dataset
        for path in sent.removed:
            check_path(path)
        upload = self._begun_once(sent, call) if sent.key else self._begun(sent.upload, call)
        call.facts["upload"] = upload.id.hex()
        if upload.state is UploadState.COMMITTED:
            return self._replayed(sent, upload, call)
        try:
            backup = self._taken(sent, upload, call)
        except BaseException as error:
            if not self._is_made(upload, error, call):
                self._drop(upload, error, call)
            raise
        call.facts.update(
            backup=backup.id.hex(),
            entries=backup.root.entries,
            bytes=backup.root.data_bytes,
            stored_bytes=backup.stored_bytes,
        )
        return sv.CommitUploadResponse(backup=convert.backup_out(backup))

    def _begun(self, asked: UploadRequest, call: Call) -> Upload:
        """Begin an upload. If that fails after it is in the catalog, it is found again by its request, and dropped."""
        request = replace(asked, request_id=secrets.token_hex(16))
        try:
            return self._uploads.begin(call.principal, request, call.check).upload
        except BaseException as error:
            try:
                self._drop(self._uploads.get(call.principal, request_id=request.request_id), error, call)
            except NotFound:
                pass  # as it should be
            except StaddleError as e:
                log.warning("an upload of a tar may be open that never began: %s", e.message)
            raise

    def _begun_once(self, sent: SentTar, call: Call) -> Upload:
        """Begin the upload of a request with a key, or return the one with which it made its backup.

        An earlier try that is still open has lost its client, or its server: it is ended.
        """
        said = blake3(b"\0".join(sent.removed)).hexdigest(16) if sent.removed else ""
        for attempt in range(ATTEMPTS_MAX):
            request_id = _request_id(call.principal, sent, attempt)
            asked = replace(sent.upload, request_id=request_id, fingerprint=said)
            try:
                begun = self._uploads.begin(call.principal, asked, call.check)
            except AlreadyExists:
                raise _reused(sent, "was used for a request with other parameters") from None
            upload = begun.upload
            if begun.replayed and upload.state is UploadState.OPEN:
                upload = self._ended(upload, call)
            if not begun.replayed or upload.state is UploadState.COMMITTED:
                return upload
        raise _reused(sent, f"was tried {ATTEMPTS_MAX} times")

    def _ended(self, upload: Upload, call: Call) -> Upload:
        """End an earlier try, and return its upload: it may have made its backup meanwhile."""
        try:
            return self._uploads.abort(call.principal, upload.id, upload.epoch)
        except StaddleError:
            found = self._uploads.get(call.principal, upload_id=upload.id)
            if found.state is UploadState.OPEN:
                raise
            return found

    def _replayed(self, sent: SentTar, upload: Upload, call: Call) -> sv.CommitUploadResponse:
        """Return the backup that an earlier try made. The body is read to its end: an answer before it would look like
        a failure to some clients.
        """
        for _ in sent.pieces:
            call.check()
        backup = self._uploads.backup_of(upload)
        call.facts.update(backup=backup.id.hex(), replayed=True)
        return sv.CommitUploadResponse(backup=convert.backup_out(backup))

    def _is_made(self, upload: Upload, error: BaseException, call: Call) -> bool:
        """Return whether there is a backup all the same: the commit failed after its decision. The error says so."""
        try:
            found = self._uploads.get(call.principal, upload_id=upload.id)
        except StaddleError:
            return False  # then nothing can be dropped either, which is logged
        if found.state is not UploadState.COMMITTED:
            return False
        call.facts["backup"] = found.backup.hex()
        if isinstance(error, StaddleError):
            error.message += (
                f". The backup exists all the same: {found.backup.hex()}; do not send the tar again"
            )
        return True

    def _taken(self, sent: SentTar, upload: Upload, call: Call) -> Backup:
        writer = self._uploads.writer(call.principal, upload.id, upload.epoch)
        with writer.stream(call.cancel):
            taken = self._received(sent, writer, call)
            return self._uploads.commit(
                call.principal,
                upload.id,
                upload.epoch,
                taken.entry_count,
                taken.data_bytes,
                problem_count=taken.problem_count,
            )

    def _received(self, sent: SentTar, writer: UploadWriter, call: Call) -> TakenTar:
        principal, decoded = call.principal, self._tenants.decoded
        described, links = (decoded.held(principal.tenant, call.check) for _ in range(2))
        try:
            for path in sent.removed:
                writer.remove(path)
            reader = TarReader(inflated(sent.compression, Pieces(sent.pieces)))
            tenant = self._tenants.get(principal.tenant)
            return TarUpload(writer, tenant, call.check, described, links).take(reader)
        finally:
            described.close()
            links.close()

    def _drop(self, upload: Upload, error: BaseException, call: Call) -> None:
        """Leave nothing of a tar that is not a backup, except why."""
        why = error.message if isinstance(error, StaddleError) else "the tar did not arrive completely"
        reason = why.encode("utf-8", "replace")[:RUN_REASON_BYTES_MAX].decode("utf-8", "ignore")
        try:
            self._runs.report(
                call.principal, FailedRun("", upload.dataset, upload.id, upload.host, reason, 0)
            )
        except StaddleError as e:
            log.warning("why upload %s of a tar failed could not be kept: %s", upload.id.hex(), e.message)
        finally:
            self._end(upload, call)

    def _end(self, upload: Upload, call: Call) -> None:
        try:
            self._uploads.abort(call.principal, upload.id, upload.epoch)
        except StaddleError as e:
            log.warning("upload %s of a tar could not be ended: %s", upload.id.hex(), e.message)


def _request_id(principal: Principal, sent: SentTar, attempt: int) -> str:
    """Return the id of one try of a request: no other token's request, and none for another dataset, has it."""
    about = blake3(derive_key_context="staddle.v1 idempotency key")
    said = "\0".join((sent.upload.dataset, sent.key, str(attempt)))  # none has a NUL
    return about.update(principal.token + said.encode()).hexdigest(16)


def _reused(sent: SentTar, how: str) -> AlreadyExists:
    return AlreadyExists(
        "REQUEST_ID_REUSED", f"Idempotency-Key {sent.key!r} {how}: use a new one", field="Idempotency-Key"
    )
