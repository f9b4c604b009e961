"""A disk that loses what was not synced: a trace of what a server did, and every state that a power cut may leave of it.

The model is the strictest that a file system of Linux may follow. Of a file so much is there as was synced; the rest may be
whole, absent, cut off or zeros. A name is there, or gone, for certain only once its directory was synced; until then each
change of a directory may have reached the disk or not, one without the other. A catalog's transaction is there once its
commit has returned, and may be there as soon as the commit has begun: SQLite's own durability is taken as given, its order
among the store's steps is not.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crash_steps import Observer, Step
from staddle_server.catalog.sqlite import choose_sqlite, installed_wheel

VARIANTS: Final = ("nothing", "names", "everything", "random")
"""Of what was not synced: nothing is there; all names without their data; all of it; each part by chance."""


@dataclass
class Snapshot:
    """The catalog after a commit; empty until the commit has returned."""

    data: bytes = b""


@dataclass(frozen=True)
class Event:
    """One thing that happened: a step that was taken, a commit that begins, or an answer that a client got.

    Attributes:
        step: What was done; of an answer its name is "answer".
        begins: A commit that begins.
        snapshot: Of a commit.
        answer: What the client may rely on from here on.

    """

    step: Step
    begins: bool = False
    snapshot: Snapshot | None = None
    answer: Any = None


class Recorder(Observer):
    """Records the events in a directory, in order."""

    def __init__(self, scratch: Path) -> None:
        self.events: list[Event] = []
        self._scratch = scratch
        self._lock = threading.Lock()
        self._begun: dict[int, Snapshot] = {}
        self._sqlite = choose_sqlite(wheel=installed_wheel()).module

    def before(self, step: Step) -> None:
        if step.operation == "commit":
            snapshot = self._begun[threading.get_ident()] = Snapshot()
            self._put(Event(step, begins=True, snapshot=snapshot))

    def after(self, step: Step) -> None:
        snapshot = None
        if step.operation == "commit":
            # No other transaction writes the catalog meanwhile: this one's turn has not ended.
            snapshot = self._begun.pop(threading.get_ident())
            snapshot.data = self._copy(step.path)
        self._put(Event(step, snapshot=snapshot))

    def answered(self, answer: Any) -> None:
        """Record that a client got an answer, and relies on it."""
        self._put(Event(Step("answer", "answer"), answer=answer))

    def _put(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)

    def _copy(self, path: str) -> bytes:
        copy = self._scratch / f"{threading.get_ident()}.db"
        source, target = self._sqlite.connect(path), self._sqlite.connect(copy)
        try:
            source.backup(target)
        finally:
            target.close()
            source.close()
        data = copy.read_bytes()
        copy.unlink()
        return data


@dataclass
class Inode:
    """A file: what was written, and what of that is durable."""

    written: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass
class Names:
    """A directory: which names are durable, and what was done to them since, in order.

    A change gives each name that it concerns what it has then; None takes the name away.
    """

    durable: dict[str, Inode | Names] = field(default_factory=dict)
    changes: list[dict[str, Inode | Names | None]] = field(default_factory=list)

    def now(self) -> dict[str, Inode | Names]:
        return self.after(self.changes)

    def after(self, changes: Sequence[dict[str, Inode | Names | None]]) -> dict[str, Inode | Names]:
        names = dict(self.durable)
        for change in changes:
            for name, what in change.items():
                if what is None:
                    names.pop(name, None)
                else:
                    names[name] = what
        return names

    def sync(self) -> None:
        self.durable = self.now()
        self.changes = []


def _names_in(path: Path) -> Names:
    """A directory that is durable with all its content."""
    names = Names()
    for each in path.iterdir():
        data = b"" if each.is_dir() else each.read_bytes()
        names.durable[each.name] = _names_in(each) if each.is_dir() else Inode(bytearray(data), data)
    return names


class Disk:
    """What is on a disk, and what is only on its way there, after some events in the directory `root`.

    `lying` names steps whose syncs seem to succeed and do nothing. `before`: a copy of the directory, and its catalog, as they
    durably were before; without it there was nothing.
    """

    def __init__(
        self,
        root: Path,
        events: Sequence[Event],
        lying: Collection[str] = (),
        before: tuple[Path, bytes] | None = None,
    ) -> None:
        self._root = str(root)
        self._top = Names() if before is None else _names_in(before[0])
        self._files: dict[int, Inode] = {}
        self._commit: Snapshot | None = None if before is None else Snapshot(before[1])
        self._committing: Snapshot | None = None
        self.answer: Any = None
        for event in events:
            if event.step.operation == "answer":
                self.answer = event.answer
            elif event.step.operation == "commit":
                self._take_commit(event)
            elif event.step.name not in lying or not event.step.operation.startswith("sync"):
                getattr(self, f"_{event.step.operation}")(event.step)

    # --- events

    def _take_commit(self, event: Event) -> None:
        if event.begins:
            self._committing = event.snapshot
        else:
            self._commit, self._committing = event.snapshot, None

    def _open(self, step: Step) -> None:
        self._files[step.file] = Inode()
        self._change(step.path, self._files[step.file])

    def _write(self, step: Step) -> None:
        self._files[step.file].written += step.data

    def _sync(self, step: Step) -> None:
        inode = self._files[step.file]
        inode.synced = bytes(inode.written)

    def _sync_directory(self, step: Step) -> None:
        names = self._names(step.path)
        if names is not None:
            names.sync()

    def _link(self, step: Step) -> None:
        self._change(step.target, self._at(step.path))

    def _replace(self, step: Step) -> None:
        moved, old, new = self._at(step.path), os.path.basename(step.path), os.path.basename(step.target)
        if os.path.dirname(step.path) == os.path.dirname(step.target):
            names = self._names(os.path.dirname(step.path))
            assert names is not None
            names.changes.append({new: moved, old: None})
        else:  # each directory keeps its own change
            self._change(step.target, moved)
            self._change(step.path, None)

    def _unlink(self, step: Step) -> None:
        self._change(step.path, None)

    def _make_directory(self, step: Step) -> None:
        self._change(step.path, Names())

    def _change(self, path: str, what: Inode | Names | None) -> None:
        names = self._names(os.path.dirname(path))
        assert names is not None, path
        names.changes.append({os.path.basename(path): what})

    def _at(self, path: str) -> Inode | Names:
        names = self._names(os.path.dirname(path))
        assert names is not None, path
        return names.now()[os.path.basename(path)]

    def _names(self, path: str) -> Names | None:
        """The directory; None for one above the root, whose state is unknown."""
        if not f"{path}/".startswith(f"{self._root}/"):
            return None
        names: Inode | Names = self._top
        for part in path[len(self._root) :].split("/"):
            if part:
                assert isinstance(names, Names)
                names = names.now()[part]
        assert isinstance(names, Names)
        return names

    # --- the state after a power cut

    def cut(self, target: Path, variant: str, rng: random.Random, catalog: str) -> None:
        """Makes `target` as the root may be after a power cut now; `catalog` is where in it the catalog lies."""
        target.mkdir()
        self._leave(self._top, target, variant, rng)
        snapshot = self._commit
        # The result of a commit is unknown if the power failed, for another thread, before it returned.
        if (
            self._committing is not None
            and self._committing.data
            and (variant == "everything" or (variant == "random" and rng.random() < 0.5))
        ):
            snapshot = self._committing
        if snapshot is not None and (target / catalog).parent.is_dir():
            (target / catalog).write_bytes(snapshot.data)

    def _leave(self, names: Names, target: Path, variant: str, rng: random.Random) -> None:
        kept = {
            "nothing": lambda _change: False,
            "names": lambda _change: True,
            "everything": lambda _change: True,
            "random": lambda _change: rng.random() < 0.5,
        }[variant]
        for name, what in names.after([change for change in names.changes if kept(change)]).items():
            if isinstance(what, Names):
                (target / name).mkdir(mode=0o700)
                self._leave(what, target / name, variant, rng)
            else:
                (target / name).write_bytes(self._content(what, variant, rng))
                (target / name).chmod(0o600)

    @staticmethod
    def _content(inode: Inode, variant: str, rng: random.Random) -> bytes:
        whole = bytes(inode.written)
        if variant == "everything" or inode.synced == whole:
            return whole
        rest = whole[len(inode.synced) :]
        if variant != "random":
            return inode.synced
        return inode.synced + rng.choice((b"", bytes(len(rest)), rest[: rng.randrange(len(rest) + 1)], rest))
