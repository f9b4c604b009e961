"""The protocol of docs/decisions/2026-11-25-collection.md in plain Python, small enough to try every interleaving.

A state is all rows of the catalog and the position of every actor. A step is one SQL statement, or several that a row lock
keeps together; so the result holds for READ COMMITTED. Besides the right protocol the model has
wrong ones, each of which loses data: a model that does not find that loss proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

WRITING, LIVE, CONDEMNED, DROPPED = "writing", "live", "condemned", "dropped"
NO_PACK = -1
NO_BASE = -1


class Upload(NamedTuple):
    """An upload that becomes the backup of its own number."""

    at: str = "begin"
    """Its next step; "over": it has none."""
    state: str = "none"
    base: int = NO_BASE
    refs: frozenset[str] = frozenset()
    """Chunks that it was told exist, or has published."""
    found: int = NO_PACK
    """The pack that a look-up has shown to it."""
    own: int = NO_PACK


class Backup(NamedTuple):
    state: str = "none"
    refs: frozenset[str] = frozenset()


class Pack(NamedTuple):
    state: str
    chunks: frozenset[str]
    owner: tuple[str, int]
    locked: bool = False


class Claim(NamedTuple):
    upload: int
    pack: int
    mark: int
    """The number of marks that had begun."""


class Mark(NamedTuple):
    number: int = 0
    phase: str = "done"
    roots: frozenset[int] = frozenset()
    unwalked: frozenset[int] = frozenset()
    packs: frozenset[int] = frozenset()
    reached: frozenset[tuple[int, str]] = frozenset()


class Collector(NamedTuple):
    at: str = "lease"
    fence: int = 0
    roots: frozenset[int] = frozenset()
    read: tuple[int, frozenset[tuple[int, str]]] = (NO_PACK, frozenset())
    left: tuple[int, ...] = ()
    claims: frozenset[Claim] = frozenset()
    """What a stale snapshot has seen."""
    copy: int = NO_PACK


class State(NamedTuple):
    uploads: tuple[Upload, ...]
    backups: tuple[Backup, ...]
    packs: tuple[Pack, ...]
    claims: frozenset[Claim]
    collectors: tuple[Collector, ...]
    fence: int = 0
    mark: Mark = Mark()

    def upload(self, number: int, **changes: object) -> State:
        return self._replace(uploads=_with(self.uploads, number, changes))

    def backup(self, number: int, **changes: object) -> State:
        return self._replace(backups=_with(self.backups, number, changes))

    def pack(self, number: int, **changes: object) -> State:
        return self._replace(packs=_with(self.packs, number, changes))

    def collector(self, number: int, **changes: object) -> State:
        return self._replace(collectors=_with(self.collectors, number, changes))

    def new_pack(self, *, owner: tuple[str, int], chunks: frozenset[str] = frozenset()) -> State:
        return self._replace(packs=(*self.packs, Pack(WRITING, chunks, owner)))

    def live(self, chunk: str) -> list[int]:
        """The live packs that have a chunk."""
        return [n for n, pack in enumerate(self.packs) if pack.state == LIVE and chunk in pack.chunks]

    def bases(self) -> frozenset[int]:
        """The bases of open uploads."""
        return frozenset(u.base for u in self.uploads if u.state == "open" and u.base != NO_BASE)


def _with(values, number, changes):
    return (*values[:number], values[number]._replace(**changes), *values[number + 1 :])


class Program(NamedTuple):
    """What an upload does: whether it starts from a base and carries all of it over, and which chunk it has to store."""

    base: bool = False
    chunk: str = ""


class Protocol(NamedTuple):
    """The faults of the protocol; none by default."""

    condemns_in_one_statement: bool = False
    claims_count_by_age: bool = False
    refers_without_a_claim: bool = False
    lists_roots_page_by_page: bool = False
    lifts_claims_of_purged_backups_when_condemning: bool = False
    refers_to_whoever_indexed_first: bool = False
    compacts_without_looking_at_claims: bool = False
    collects_without_a_fence: bool = False
    forgets_bases_of_open_uploads: bool = False


RIGHT = Protocol()


class Model:
    """Every state that can be reached, from one beginning, by some uploads, purges and collectors."""

    def __init__(
        self,
        programs: tuple[Program, ...],
        protocol: Protocol = RIGHT,
        purges: frozenset[int] = frozenset({0, 1}),
    ) -> None:
        self._programs = (Program(), *programs)
        self._wrong = protocol
        self._purges = purges

    def explore(self, start: State) -> tuple[int, list[str]]:
        """The number of states, and a shortest way to one in which something is lost (empty: no such state)."""
        came: dict[State, tuple[State, str] | None] = {start: None}
        edge = [start]
        while edge:
            further = []
            for state in edge:
                lost = losses(state)
                if lost:
                    return len(came), [*_way(came, state), lost]
                for said, after in self.steps(state):
                    if after not in came:
                        came[after] = (state, said)
                        further.append(after)
            edge = further
        return len(came), []

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Everything that can happen next."""
        for number, upload in enumerate(state.uploads):
            if upload.at != "over":
                for after in self._upload(state, number):
                    yield f"upload {number}: {upload.at}", after
            if upload.state == "open":
                yield f"upload {number}: abort", _abort(state, number)
        for number in self._purges:
            if number < len(state.backups) and state.backups[number].state == "there":
                yield f"purge backup {number}", state.backup(number, state="purged")
        for number, collector in enumerate(state.collectors):
            if collector.at != "over":
                for after in self._collector(state, number):
                    yield f"collector {number}: {collector.at}", after

    # --- uploads

    def _upload(self, state: State, number: int) -> Iterator[State]:
        upload, program = state.uploads[number], self._programs[number]
        if upload.at == "begin":
            there = [n for n, backup in enumerate(state.backups) if backup.state == "there"]
            base = max(there) if program.base and there else NO_BASE
            then = "find" if program.chunk else "commit"
            yield state.upload(number, at=then, state="open", base=base)
        elif upload.at == "find":
            found = state.live(program.chunk)
            for pack in found or [NO_PACK]:
                yield state.upload(number, at="claim", found=pack)
        elif upload.at == "claim":
            yield from self._claim(state, number)
        elif upload.at == "announce a pack":
            own = len(state.packs)
            after = state.new_pack(owner=("upload", number)).upload(number, at="publish", own=own)
            yield _claimed(after, number, own)
        elif upload.at == "publish":
            yield self._publish(state, number)
        elif upload.at == "commit":
            carried = state.backups[upload.base].refs if upload.base != NO_BASE else frozenset()
            refs = upload.refs | carried
            after = state.upload(number, at="over", state="committed", refs=refs)
            yield after.backup(number, state="there", refs=refs)

    def _claim(self, state: State, number: int) -> Iterator[State]:
        upload, program = state.uploads[number], self._programs[number]
        has_it = upload.refs | {program.chunk}
        if self._wrong.refers_without_a_claim and upload.found != NO_PACK:
            yield state.upload(number, at="commit", refs=has_it)
        elif upload.found == NO_PACK or state.packs[upload.found].state != LIVE:
            yield state.upload(number, at="announce a pack")
        elif not state.packs[upload.found].locked:
            yield _claimed(state.upload(number, at="commit", refs=has_it), number, upload.found)

    def _publish(self, state: State, number: int) -> State:
        upload, chunk = state.uploads[number], self._programs[number].chunk
        chunks = frozenset({chunk})
        if self._wrong.refers_to_whoever_indexed_first and state.live(chunk):
            chunks = frozenset()
        after = state.pack(upload.own, state=LIVE, chunks=chunks)
        return after.upload(number, at="commit", refs=upload.refs | {chunk})

    # --- collectors

    def _collector(self, state: State, number: int) -> Iterator[State]:
        me = state.collectors[number]
        if me.at == "lease":
            yield from self._lease(state, number)
            return
        writes = me.at not in {"walk", "list roots", "list bases", "list packs", "test"}
        if writes and me.fence != state.fence and not self._wrong.collects_without_a_fence:
            yield state.collector(number, at="over")  # the fence was raised: none of it is written
            return
        yield from getattr(self, "_" + me.at.replace(" ", "_"))(state, number)

    def _lease(self, state: State, number: int) -> Iterator[State]:
        # A transaction holds the collector's row: the next one waits for its end.
        if any(other.at in {"list roots", "list bases", "list packs", "test"} for other in state.collectors):
            return
        after = state._replace(fence=state.fence + 1)
        after = after.collector(number, fence=after.fence)
        if state.mark.phase == "done":
            yield after.collector(number, at="end old claims")
        elif state.mark.unwalked:
            yield after.collector(number, at="walk")
        else:
            yield after.collector(number, at="next pack", left=tuple(sorted(state.mark.packs)))

    def _end_old_claims(self, state: State, number: int) -> Iterator[State]:
        over = {
            n
            for n, upload in enumerate(state.uploads)
            if upload.state == "committed" and state.backups[n].state == "purged" and n not in state.bases()
        }
        kept = frozenset(claim for claim in state.claims if claim.upload not in over)
        yield state._replace(claims=kept).collector(number, at="list roots")

    def _list_roots(self, state: State, number: int) -> Iterator[State]:
        roots = frozenset(n for n, backup in enumerate(state.backups) if backup.state == "there")
        if self._wrong.lists_roots_page_by_page:
            yield state.collector(number, at="list bases", roots=roots)
            return
        bases = frozenset() if self._wrong.forgets_bases_of_open_uploads else state.bases()
        yield state.collector(number, at="list packs", roots=roots | bases)

    def _list_bases(self, state: State, number: int) -> Iterator[State]:
        roots = state.collectors[number].roots | state.bases()
        yield state.collector(number, at="list packs", roots=roots)

    def _list_packs(self, state: State, number: int) -> Iterator[State]:
        roots = state.collectors[number].roots
        live = frozenset(n for n, pack in enumerate(state.packs) if pack.state == LIVE)
        mark = Mark(state.mark.number + 1, "walking", roots, roots, live)
        at = "walk" if roots else "next pack"
        after = state._replace(mark=mark)
        yield after.collector(number, at=at, left=tuple(sorted(live)), roots=frozenset())

    def _walk(self, state: State, number: int) -> Iterator[State]:
        if not state.mark.unwalked or state.mark.phase == "done":
            yield state.collector(number, at="over")  # only a collector that was overtaken comes here
            return
        root = min(state.mark.unwalked)
        reached = frozenset(
            (min(state.live(chunk), default=NO_PACK), chunk) for chunk in state.backups[root].refs
        )
        yield state.collector(number, at="save", read=(root, reached))

    def _save(self, state: State, number: int) -> Iterator[State]:
        root, reached = state.collectors[number].read
        mark = state.mark._replace(
            unwalked=state.mark.unwalked - {root}, reached=state.mark.reached | reached
        )
        after = state._replace(mark=mark).collector(number, read=(NO_PACK, frozenset()))
        if mark.unwalked:
            yield after.collector(number, at="walk")
        else:
            yield after.collector(number, at="next pack", left=tuple(sorted(mark.packs)))

    def _next_pack(self, state: State, number: int) -> Iterator[State]:
        me = state.collectors[number]
        if not me.left:
            yield state.collector(number, at="end claims")
            return
        pack = me.left[0]
        alive = frozenset(chunk for n, chunk in state.mark.reached if n == pack)
        if state.packs[pack].state != LIVE or alive == state.packs[pack].chunks:
            yield state.collector(number, left=me.left[1:])
            return
        after = state
        if alive:  # a compaction copies first
            after = state.new_pack(owner=("collector", me.fence), chunks=alive)
            after = after.collector(number, copy=len(state.packs))
        snapshot = state.claims if self._wrong.condemns_in_one_statement else frozenset()
        yield after.collector(number, at="lock", claims=snapshot)

    def _lock(self, state: State, number: int) -> Iterator[State]:
        me = state.collectors[number]
        pack = state.packs[me.left[0]]
        if pack.locked:
            return
        if pack.state != LIVE:
            yield self._given_up(state, number)
        else:
            yield state.pack(me.left[0], locked=True).collector(number, at="test")

    def _test(self, state: State, number: int) -> Iterator[State]:
        me = state.collectors[number]
        pack = me.left[0]
        claims = me.claims if self._wrong.condemns_in_one_statement else state.claims
        blind = me.copy != NO_PACK and self._wrong.compacts_without_looking_at_claims
        after = state.pack(pack, locked=False)
        if not blind and any(claim.pack == pack and self._counts(state, claim) for claim in claims):
            yield self._given_up(after, number)
            return
        if me.copy != NO_PACK:
            after = after.pack(me.copy, state=LIVE)
        after = after.pack(pack, state=CONDEMNED)
        yield after.collector(number, at="next pack", left=me.left[1:], copy=NO_PACK, claims=frozenset())

    def _counts(self, state: State, claim: Claim) -> bool:
        if self._wrong.claims_count_by_age and claim.mark < state.mark.number:
            return False
        if (
            self._wrong.lifts_claims_of_purged_backups_when_condemning
            and state.backups[claim.upload].state == "purged"
        ):
            return False
        return claim.upload not in state.mark.roots or state.uploads[claim.upload].state != "committed"

    def _given_up(self, state: State, number: int) -> State:
        me = state.collectors[number]
        after = state if me.copy == NO_PACK else state.pack(me.copy, state=DROPPED)
        return after.collector(number, at="next pack", left=me.left[1:], copy=NO_PACK, claims=frozenset())

    def _end_claims(self, state: State, number: int) -> Iterator[State]:
        kept = frozenset(claim for claim in state.claims if claim.upload not in state.mark.roots)
        done = state._replace(claims=kept, mark=Mark(number=state.mark.number))
        yield done.collector(number, at="over")


def _claimed(state: State, upload: int, pack: int) -> State:
    return state._replace(claims=state.claims | {Claim(upload, pack, state.mark.number)})


def _abort(state: State, number: int) -> State:
    kept = frozenset(claim for claim in state.claims if claim.upload != number)
    return state._replace(claims=kept).upload(number, at="over", state="aborted", refs=frozenset())


def losses(state: State) -> str:
    """What is lost in a state: a chunk that some backup or upload relies on and that no live pack has. Empty: nothing."""
    for number, backup in enumerate(state.backups):
        needed = backup.state == "there" or (backup.state == "purged" and number in state.bases())
        for chunk in backup.refs if needed else ():
            if not state.live(chunk):
                return f"LOST: chunk {chunk} of backup {number} ({backup.state})"
    for number, upload in enumerate(state.uploads):
        for chunk in upload.refs if upload.state == "open" else ():
            if not state.live(chunk):
                return f"LOST: chunk {chunk} of the open upload {number}"
    return ""


def _way(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    way: list[str] = []
    step = came[state]
    while step is not None:
        state, said = step
        way.append(said)
        step = came[state]
    return way[::-1]


def beginning(uploads: int, collectors: int, *, dead: bool = False, claimed: bool = True) -> State:
    """A backup with chunk a in pack 0, and uploads and collectors that are about to begin.

    Args:
        uploads: How many will begin.
        collectors: How many.
        dead: Pack 0 also has a chunk that nothing needs, so that it is compacted.
        claimed: No mark has read the backup's manifest yet.

    """
    refs = frozenset({"a"})
    return State(
        uploads=(Upload("over", "committed", refs=refs), *[Upload()] * uploads),
        backups=(Backup("there", refs), *[Backup()] * uploads),
        packs=(Pack(LIVE, refs | ({"dead"} if dead else set()), ("upload", 0)),),
        claims=frozenset({Claim(0, 0, 0)} if claimed else ()),
        collectors=(Collector(),) * collectors,
    )
