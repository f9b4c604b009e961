"""The thin path: one stream of entries and bytes, chunked and hashed here."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from blake3 import blake3
from staddle.chunking import Buffer, Chunker

from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import FILE_BYTES_MAX, MIB, ZERO_BYTES_MAX
from staddle_server.base.types import Content, Entry, Flag, Profile
from staddle_server.manifest.entries import shown
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upload.intake import Intake, Removed, Sent, check_file, claimed, verified
from staddle_server.upload.writer import UploadWriter


class _Receiving(NamedTuple):
    """The file whose Data parts are arriving."""

    sent: Sent
    chunker: Chunker
    hasher: blake3 | None


class BackupStream:
    """Applies the parts of one Backup stream to its upload. Not thread-safe."""

    def __init__(self, writer: UploadWriter, tenant: Tenant) -> None:
        self._writer = writer
        self._tenant = tenant
        self._intake = Intake(writer, tenant)
        self._receiving: _Receiving | None = None

    def check_position(self, position: int) -> None:
        """Check that a stream that continues an upload starts at the upload's position.

        Raises:
            BadRequest: BAD_SEQUENCE.

        """
        if position != self._writer.position:
            raise BadRequest(
                "BAD_SEQUENCE",
                f"the stream continues at position {position}, but the upload is at {self._writer.position}: ask GetUpload or "
                "ResumeUpload",
                position=str(self._writer.position),
            )

    def entry(self, sent: Sent) -> None:
        """Take an entry: complete, or a file whose Data parts follow."""
        self._between("an entry")
        if sent.complete:
            self._intake.put(sent)
            return
        if sent.more:
            raise BadRequest("BAD_SEQUENCE", "more is only valid in PutEntries", path=shown(sent.entry.path))
        entry = claimed(sent.entry, sent.digest)
        check_file(entry, FILE_BYTES_MAX if sent.size is None else sent.size)
        self._writer.open_file(entry, sent.profile, continue_at=sent.continue_at)
        fixed = sent.profile is Profile.FIXED
        hasher = blake3() if sent.digest and sent.continue_at in {None, 0} else None
        self._receiving = _Receiving(sent, Chunker(self._tenant.cutter, fixed=fixed), hasher)

    def data(self, data: Buffer) -> None:
        """Take the next bytes of the open file; they must not change afterwards."""
        receiving = self._open("data")
        if receiving.hasher is not None:
            receiving.hasher.update(data)
        cuts = receiving.chunker.push(data)
        if cuts:
            self._writer.add_cuts(cuts)

    def zeros(self, count: int) -> None:
        """Take so many zero bytes of the open file."""
        receiving = self._open("data")
        if count > ZERO_BYTES_MAX:
            raise BadRequest("BAD_FIELD", f"the limit is {ZERO_BYTES_MAX} zeros a part", field="zero_bytes")
        cuts = receiving.chunker.push_zeros(count)
        if receiving.hasher is not None:
            block = memoryview(bytes(min(count, MIB)))
            for start in range(0, count, MIB):
                receiving.hasher.update(block[: count - start])
        if cuts:
            self._writer.add_cuts(cuts)

    def entry_end(self, size: int | None, content_id: bytes, *, read_again: bool) -> None:
        """Complete the open file."""
        receiving = self._open("entry_end")

        def finish(entry: Entry, content: Content) -> Entry:
            path = shown(entry.path)
            for stated in (size, receiving.sent.size):
                if stated is not None and stated != content.size:
                    raise BadRequest(
                        "DIGEST_MISMATCH",
                        f"{path}: {stated} bytes were announced, {content.size} arrived",
                        path=path,
                    )
            if content_id and content_id != content.content_id:
                raise BadRequest(
                    "DIGEST_MISMATCH",
                    f"{path}: its content id is {content.content_id.hex()}, not {content_id.hex()}",
                    path=path,
                )
            if receiving.hasher is not None:
                entry = verified(entry, receiving.sent.digest, receiving.hasher.digest())
            if read_again:
                entry = msgspec.structs.replace(entry, flags=entry.flags | Flag.READ_AGAIN)
            return entry

        self._writer.add_cuts(receiving.chunker.finish())
        try:
            self._writer.end_file(finish)
        except BadRequest:
            self._writer.drop_file()
            raise
        self._receiving = None

    def remove(self, path: bytes) -> None:
        """Remove a path and everything below it."""
        self._between("a removal")
        self._intake.put(Removed(path))

    def _open(self, what: str) -> _Receiving:
        if self._receiving is None:
            raise BadRequest("BAD_SEQUENCE", f"{what} without an open file: it must follow an entry")
        return self._receiving

    def _between(self, what: str) -> None:
        if self._receiving is not None:
            path = shown(self._receiving.sent.entry.path)
            raise BadRequest("BAD_SEQUENCE", f"{what} before the entry_end of {path}", path=path)

    def end(self) -> None:
        """Handle Finish or Checkpoint: at a Finish no file may be open.

        Raises:
            BadRequest: BAD_SEQUENCE.

        """
        self._between("finish")
