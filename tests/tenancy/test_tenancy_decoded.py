"""The memory for decoded messages: each tenant has its share, waits a moment for it, and takes none from others."""

import gc
import threading

import pytest
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api.messages import put_entries
from staddle_server.base import memory_budget
from staddle_server.base.errors import Exhausted
from staddle_server.base.limits import (
    DECODED_BYTES_MAX,
    DECODED_CALL_BYTES,
    DECODED_TENANT_BYTES_MAX,
    ITEMS_PER_MESSAGE_MAX,
    MESSAGE_BYTES_MAX,
    MIB,
)
from staddle_server.base.memory_budget import DecodedBytes
from staddle_server.base.threads import Threads
from staddle_server.restore.restore import Restore
from staddle_server.tenancy.chunk_reader import DECODED_FACTOR, ChunkReader
from staddle_server.tenancy.tenant import Tenants
from thin import back_up

ONE, OTHER = b"1" * 16, b"2" * 16


def asked() -> None:
    """A caller that is still connected."""


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(memory_budget, "WAIT_S", 0.3)
    return DecodedBytes(tenant_max=8 * MIB, server_max=16 * MIB)


def full(memory, tenant=ONE):
    held = memory.held(tenant, asked)
    held.change(memory.tenant_max)
    return held


def test_a_call_beyond_the_share_of_its_tenant_is_refused_with_a_retry_time(memory):
    first, second = full(memory), memory.held(ONE, asked)
    with pytest.raises(Exhausted) as refused:
        second.change(2 * MIB)
    assert (refused.value.reason, refused.value.retry_after_s) == ("TOO_MANY", memory_budget.RETRY_S)
    assert "of this tenant" in refused.value.message
    assert (second.size, memory.used(ONE)) == (0, memory.tenant_max)
    first.close()
    second.change(2 * MIB)


def test_another_tenant_keeps_its_full_share_whatever_the_first_one_holds(memory):
    first = full(memory)
    upkeep = memory.held(ONE)  # without a caller: counted, and never waits
    upkeep.change(100 * MIB)
    assert memory.used(ONE) == 108 * MIB
    other = full(memory, OTHER)
    assert memory.used(OTHER) == other.size == first.size


def test_a_call_proceeds_with_its_minimum_when_the_share_of_its_tenant_is_used_up(memory):
    first, second = full(memory), memory.held(ONE, asked)
    second.change(DECODED_CALL_BYTES)
    assert not second.may_change(1)  # a call that can work with less gets less
    first.close()
    assert second.may_change(1)


def test_a_waiting_call_proceeds_when_memory_is_free(memory, monkeypatch):
    monkeypatch.setattr(memory_budget, "WAIT_S", 30.0)
    first, second = full(memory), memory.held(ONE, asked)
    waiting = threading.Thread(target=second.change, args=(2 * MIB,))
    waiting.start()
    first.close()
    waiting.join()
    assert memory.used(ONE) == 2 * MIB


def test_a_call_that_waits_ends_with_its_caller(memory, monkeypatch):
    monkeypatch.setattr(memory_budget, "WAIT_S", 30.0)
    first = full(memory)

    def gone() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        memory.held(ONE, gone).change(2 * MIB)
    assert memory.used(ONE) == first.size


def test_memory_is_freed_with_the_last_reference(memory):
    held = full(memory)
    del held
    gc.collect()
    assert memory.used(ONE) == 0
    full(memory)


def test_the_largest_message_fits_into_the_share_of_one_tenant():
    """Otherwise it could never be accepted."""
    entry = pb.Entry(path="a", xattrs=[pb.Xattr(name=b"n")] * (ITEMS_PER_MESSAGE_MAX // 4096))
    changes = [sv.EntryChange(entry=entry)] * 4096
    message = sv.PutEntriesRequest(upload_id="u", epoch=1, number=1, changes=changes).SerializeToString()
    assert len(message) <= MESSAGE_BYTES_MAX
    weight = put_entries(message).weigh()
    # 4,096 entries of 64 attributes are some 60 MiB of objects.
    assert 60 * MIB < weight < DECODED_TENANT_BYTES_MAX < DECODED_BYTES_MAX


def test_the_window_of_a_restore_is_shorter_when_the_share_is_used_up(running):
    back_up(running.stub(), "www", {f"{number}": b"" for number in range(5000)})
    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    (kept,) = running.catalog.verification.backups(running.tenant)

    opener = Threads(1, thread_name_prefix="open")

    def most() -> int:
        """The bytes counted beside the share while a restore lists everything."""
        before = tenant.decoded.used(tenant.id)
        found = Restore(tenant, running.catalog, kept.root, opener, data=False, refs=True, check=asked)
        most = max(tenant.decoded.used(tenant.id) - before for _ in found.events((), exact=False))
        assert found.totals.entries == 5000
        return most

    alone = most()
    share = full(tenant.decoded, tenant.id)
    assert most() < alone - MIB
    share.close()
    opener.shutdown()


def test_a_page_counts_with_its_decoded_size_until_its_reader_has_ended(running):
    back_up(running.stub(), "www", {f"{number}": b"" for number in range(100)})
    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    (kept,) = running.catalog.verification.backups(running.tenant)
    reader = ChunkReader(tenant, running.catalog)
    page = reader.read(kept.root.digest)
    assert tenant.decoded.used(tenant.id) == DECODED_FACTOR * len(page)
    del reader
    gc.collect()
    assert tenant.decoded.used(tenant.id) == 0
