"""Errors keep no memory: the bytes of a damaged pack are freed with the error, on every Python."""

import gc
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from staddle_server.base.types import Role, SegmentRef, TenantKeys
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.pack import PackDamaged, PackReader, pack_name
from staddle_server.store.packform import FormError
from store_data import write_pack


def fails(ask: Callable[[], object]) -> bool:
    """Whether reading finds damage; drops the error itself."""
    try:
        ask()
    except PackDamaged:
        return True
    return False


def test_an_error_about_a_pack_leaves_no_reference_cycle_to_its_bytes(
    memory: MemoryBlobs, keys: TenantKeys
) -> None:
    summary = write_pack(memory, keys, [(Role.DATA, [b"chunk" * 1000])])
    ref = summary.chunks[0].place.segment
    name = pack_name(keys.tenant, summary.pack)
    data = bytearray(memory.objects[name])
    data[ref.offset + 40] ^= 1
    data[-1] ^= 1
    memory.objects[name] = bytes(data)
    reader = PackReader(memory, keys)
    gc.collect()
    gc.disable()
    try:
        for ask in (
            lambda: reader.segment(ref),
            lambda: reader.footer(summary.pack),
            lambda: reader.segment(SegmentRef(summary.pack, 1, 1)),
        ):
            assert fails(ask)
            held = [
                each for each in gc.get_objects() if isinstance(each, (PackDamaged, FormError, InvalidTag))
            ]
            assert held == []
    finally:
        gc.enable()
