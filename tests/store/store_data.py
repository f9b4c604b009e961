"""Seeded data for the tests of the store."""

from collections.abc import Iterable, Sequence

from blake3 import blake3
from staddle_server.base.types import ChunkRef, PackSummary, Role, TenantKeys
from staddle_server.store.blobs import Blobs
from staddle_server.store.pack import Codec
from staddle_server.store.pack_writer import PackWriter


class Seeded:
    """Bytes that look random and are the same in each run; also a `random` for what takes one."""

    def __init__(self, label: str) -> None:
        self._hasher = blake3(label.encode())
        self._position = 0

    def __call__(self, length: int) -> bytes:
        data: bytes = self._hasher.digest(length=length, seek=self._position)
        self._position += length
        return data


def tenant_keys(label: str, versions: Iterable[int] = (1,)) -> TenantKeys:
    seeded = Seeded(f"keys {label}")
    return TenantKeys(seeded(16), seeded(32), {version: seeded(32) for version in versions})


def table_of(chunks: Iterable[bytes]) -> list[ChunkRef]:
    return [ChunkRef(len(chunk), blake3(chunk).digest()) for chunk in chunks]


def append_raw(writer: PackWriter, role: Role, chunks: Sequence[bytes]) -> None:
    payload = b"".join(chunks)
    writer.append(role, table_of(chunks), Codec.RAW, payload, len(payload))


def write_pack(
    blobs: Blobs, keys: TenantKeys, segments: Sequence[tuple[Role, Sequence[bytes]]]
) -> PackSummary:
    writer = PackWriter(blobs, keys)
    for role, chunks in segments:
        append_raw(writer, role, chunks)
    return writer.finish()


def xored(data: bytes, with_what: int = 0xFF) -> bytes:
    """Other bytes of the same length, whatever they were."""
    return bytes(byte ^ with_what for byte in data)
