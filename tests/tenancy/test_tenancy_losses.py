"""One walk finds what backups have lost: it reads shared pages once, and finds every loss in each backup."""

from blake3 import blake3
from staddle_server.base.types import Role
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.losses import Losses
from staddle_server.tenancy.tenant import Tenants
from thin import back_up, noise

MANY = {f"d{i % 7}/{'long' * 40}/f{i:04}": b"%d" % i for i in range(2800)}
LOST = f"d3/{'long' * 40}/f1403"
LARGE = noise(12_000_000, 1)


def roots(running):
    """The manifests of all backups, the first one first."""
    return [
        backup.root
        for backup in sorted(
            running.catalog.verification.backups(running.tenant), key=lambda backup: backup.number
        )
    ]


def reader_of(running):
    return ChunkReader(
        Tenants(running.blobs, running.catalog, running.keys).get(running.tenant), running.catalog
    )


def mark(running, role, digest):
    """Mark the segment with a chunk as damaged."""
    (place,) = reader_of(running).locate(role, [digest])[digest]
    running.catalog.packs.mark_damaged(running.tenant, place.segment.pack, place.segment.offset)


def lists_of(running, root):
    """The digests of the list chunks of a manifest's one large file."""
    from staddle_server.manifest.content import lists_of
    from staddle_server.manifest.read import Manifest

    entry = Manifest(root, reader_of(running)).find(b"large")
    return [
        (place[:32], refs) for place, refs in lists_of(entry.content, reader_of(running), lambda _: False)
    ]


def test_pages_that_backups_share_are_looked_up_once(running):
    stub = running.stub()
    back_up(stub, "www", MANY | {"large": LARGE})
    back_up(stub, "www", MANY | {"large": LARGE, "zzz": b"new"})
    first, second = roots(running)
    losses = Losses(reader_of(running), share=True)
    assert losses.is_whole(first)
    looked_up = losses.chunks
    assert looked_up > len(MANY)
    assert losses.is_whole(second)
    assert losses.chunks - looked_up < looked_up / 4, "only the page with the new file, and those above it"
    looked_up = losses.chunks
    assert losses.is_whole(second)
    assert losses.chunks == looked_up


def test_a_shared_loss_is_found_in_each_backup_even_after_complete_parts_were_remembered(
    running,
):
    stub = running.stub()
    back_up(stub, "www", MANY)
    back_up(stub, "www", MANY | {"zzz": b"new"})
    mark(running, Role.DATA, blake3(MANY[LOST]).digest())
    losses = Losses(reader_of(running), share=True)
    found = [[loss.where.path for loss in losses.of(root)] for root in roots(running)]
    assert LOST.encode() in found[0]
    assert found[0] == found[1]
    assert found[0] == sorted(found[0], key=lambda path: path.replace(b"/", b"\0")), "in order"


def test_a_walk_that_starts_after_a_path_finds_the_later_losses(running):
    stub = running.stub()
    back_up(stub, "www", MANY)
    mark(running, Role.DATA, blake3(MANY[LOST]).digest())
    (root,) = roots(running)
    losses = Losses(reader_of(running), share=True)
    every = [loss.where.path for loss in losses.of(root)]
    at = every.index(LOST.encode())
    assert [loss.where.path for loss in losses.of(root, after=LOST.encode())] == every[at + 1 :]


def test_lost_chunks_of_a_long_list_have_their_lengths_and_a_lost_list_its_reason(running):
    stub = running.stub()
    back_up(stub, "www", {"large": LARGE})
    back_up(stub, "www", {"large": LARGE, "small": b"1"})
    _, root = roots(running)
    (list_digest, refs), *_ = [(digest, refs) for digest, refs in lists_of(running, root) if refs]
    mark(running, Role.DATA, refs[-1].digest)
    losses = list(Losses(reader_of(running)).of(root))
    assert {loss.where.path for loss in losses} == {b"large"}
    lengths = {lost.ref.digest: lost.ref.length for loss in losses for lost in loss.data}
    assert lengths[refs[-1].digest] == refs[-1].length
    assert all(lost.places for loss in losses for lost in loss.data)
    assert not any(loss.message for loss in losses)
    (place,) = reader_of(running).locate(Role.MANIFEST, [list_digest])[list_digest]
    (path,) = (running.root / "store" / "packs").rglob(place.segment.pack.hex())
    path.unlink()
    *_, last = Losses(reader_of(running)).of(root)
    assert last.where.path == b"large"
    assert last.message


def test_a_readable_page_marked_as_damaged_makes_a_backup_incomplete_without_a_lost_path(running):
    back_up(running.stub(), "www", {"a": b"1"})
    (root,) = roots(running)
    mark(running, Role.MANIFEST, root.digest)
    losses = Losses(reader_of(running), share=True)
    assert [loss.where for loss in losses.of(root)] == [None]
    assert not losses.is_whole(root), "a lost page is not remembered as complete"
