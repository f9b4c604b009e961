"""The mark: what the manifests keep alive; and condemning the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from staddle_server.base.errors import Damaged
from staddle_server.catalog import Mark, MarkedPack, MarkRoot
from staddle_server.upkeep.gc.live_chunks import Reached
from staddle_server.upkeep.gc.tenant_run import NotCollected, Turn

SAVE_S: Final = 10.0
"""How often a mark saves its progress: a killed one loses this much time, and one root."""


def walk_mark(turn: Turn) -> Mark:
    """Begin a mark, or resume an interrupted one, and walk its roots to the end.

    Raises:
        NotCollected: A page of a manifest is unreadable, and may refer to anything.

    """
    collection = turn.catalog.marks
    mark = collection.begin_mark(turn.tenant.id, turn.fence, turn.clock.now_ns())
    if mark.walked:
        return mark
    reached = Reached(turn.tenant, turn.catalog)
    if mark.resumed:
        for pack in marked(turn, mark):
            reached.restore(pack.pack, pack.reached)
    try:
        _walk(turn, mark, reached, collection.roots(mark.number))
    except NotCollected as e:
        collection.end_mark(turn.fence, mark.number, turn.clock.now_ns(), str(e), failed=True)
        raise
    collection.walk_done(turn.fence, mark.number)
    return mark


def _walk(turn: Turn, mark: Mark, reached: Reached, roots: Sequence[MarkRoot]) -> None:
    walked: list[bytes] = []
    saved_s = turn.clock.monotonic_s()
    for root in walk_roots(turn, reached, roots):
        walked.append(root.backup)
        if turn.clock.monotonic_s() - saved_s >= SAVE_S:
            _save(turn, mark, reached, walked)
            saved_s = turn.clock.monotonic_s()
    _save(turn, mark, reached, walked)


def _save(turn: Turn, mark: Mark, reached: Reached, walked: list[bytes]) -> None:
    collection = turn.catalog.marks
    collection.save_reached(turn.tenant.id, turn.fence, mark.number, reached.changed())
    collection.roots_walked(turn.fence, mark.number, walked)
    walked.clear()


def walk_roots(turn: Turn, reached: Reached, roots: Sequence[MarkRoot]) -> Iterator[MarkRoot]:
    """Walk the manifests, and yield each root when everything below it is reached.

    Raises:
        NotCollected: A page is unreadable.

    """
    for number, root in enumerate(roots):
        turn.show("reading manifests", number, len(roots))
        try:
            reached.walk(root.root, turn.tick)
        except Damaged as e:
            raise NotCollected(
                f"the manifest of backup {root.backup.hex()} is unreadable, and may refer to anything: {e.message}. "
                "Nothing is collected until a later backup has healed it, or until that backup was deleted and its grace period is over"
            ) from e
        turn.report.backups_walked += 1
        turn.report.chunks_looked_up, turn.report.chunks_missing = reached.chunks, reached.missing
        turn.tick()
        yield root


def marked(turn: Turn, mark: Mark) -> Iterator[MarkedPack]:
    """Yield the packs of the mark that are still live, a page at a time."""
    after = 0
    while page := turn.catalog.marks.reached(mark.number, after):
        turn.tick()
        yield from page
        after = page[-1].row


def condemn_unreached(turn: Turn, mark: Mark) -> None:
    """Condemn the packs that the mark did not reach and no upload claims."""
    for pack in marked(turn, mark):
        turn.report.packs_looked_at += 1
        turn.report.bytes_looked_at += pack.size_bytes
        if pack.reached or pack.claimed:
            continue
        turn.show("condemning packs", turn.report.packs_condemned, 0)
        gone = turn.catalog.marks.condemn(
            turn.tenant.id,
            turn.fence,
            mark.number,
            [pack.pack],
            now_ns=turn.clock.now_ns(),
        )
        if gone:
            turn.report.packs_condemned += 1
            turn.report.bytes_condemned += pack.size_bytes
