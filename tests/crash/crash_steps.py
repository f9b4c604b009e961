"""The durable steps of a server by name, seen from outside: what it asks of its files or its object store, and its catalog's commits.

docs/safety.md has the table of names. Nothing in the server knows of this: the methods of `Files`, of `ObjectBlobs` and
`Database.write` are wrapped, and SQLAlchemy reports the commits.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import Pool
from staddle_server.catalog import database
from staddle_server.store.files import Files

MAGICS: Final = {
    b"STADPACK": "pack",
    b"STADRECD": "record",
    b"STADKEYS": "keys",
    b"STADHEAD": "head",
    b"staddle store": "format",
    b"staddle mark": "mark",
}
DIRECTORIES: Final = {"packs": "pack", "records": "record", "keys": "keys", "heads": "head", "marks": "mark"}


@dataclass(frozen=True)
class Step:
    """One durable step, about to be taken or just taken.

    Attributes:
        name: As the table has it; "" for what is none, such as closing a file.
        operation: The method of Files, or "commit".
        path: What it is about; of a link or a replacement the old name.
        target: The new name.
        file: Tells apart the files that were made.
        data: What is written.

    """

    name: str
    operation: str
    path: str = ""
    target: str = ""
    file: int = 0
    data: bytes = b""


class Observer:
    """Sees every step. What `before` raises fails the step; where `skips` says so, it is not taken and seems to succeed."""

    def before(self, step: Step) -> None: ...

    def after(self, step: Step) -> None: ...

    def skips(self, step: Step) -> bool:
        return False


def kind_of(path: str) -> str:
    """What kind of object has this name; "temporary" for what has none yet."""
    base = os.path.basename(path)
    if base.startswith(("master.key", "client.toml")):
        return "master-key" if base.startswith("master.key") else "client-config"
    parts = path.split("/")
    if "store" in parts:
        below = parts[len(parts) - parts[::-1].index("store") :]
        if below[:1] == ["tmp"] and len(below) == 2:
            return "temporary"
        if below == ["format"]:
            return "format"
        if below and below[0] in DIRECTORIES:
            return DIRECTORIES[below[0]]
    return "other"


def directory_step(path: str) -> str:
    """The name of a directory's sync: what names it holds."""
    parts = path.split("/")
    if "store" not in parts:
        # The data directory holds master.key from its first step on.
        return "data.sync-directory" if _is_data(path) else "parent.sync-directory"
    below = parts[len(parts) - parts[::-1].index("store") :]
    if not below:
        return "store.sync-directory"
    depth = {"packs": 3, "records": 2, "keys": 2, "heads": 1, "marks": 1}
    if len(below) == depth.get(below[0]):
        return f"{DIRECTORIES[below[0]]}.sync-directory"
    return "directory.sync"


def _is_data(path: str) -> bool:
    return os.path.exists(os.path.join(path, "server.lock"))


@dataclass(frozen=True)
class _Open:
    """An open file: which one, what it was opened as, and of what kind its content is."""

    file: int
    path: str
    kind: str


class _Watched:
    """The methods of Files while they are watched."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._open: dict[int, _Open] = {}
        self._files = 0
        self._lock = threading.Lock()
        self._steps: dict[str, Callable[..., Step | None]] = {
            "open": self._opening,
            "close": lambda _descriptor: None,
            "write": self._writing,
            "sync": lambda descriptor: self._on(descriptor, "sync"),
            "sync_directory": self._syncing_directory,
            "link": lambda source, target: Step(f"{kind_of(target)}.link", "link", source, target),
            "replace": lambda source, target: Step(f"{kind_of(target)}.replace", "replace", source, target),
            "unlink": self._unlinking,
            "make_directory": lambda path: Step("directory.make", "make_directory", path),
        }
        self._real = {name: getattr(Files, name) for name in self._steps}

    def install(self) -> None:
        for name in self._steps:
            setattr(Files, name, self._method(name))

    def remove(self) -> None:
        for name, real in self._real.items():
            setattr(Files, name, real)

    def _method(self, operation: str) -> Callable[..., Any]:
        real, step_of = self._real[operation], self._steps[operation]

        def method(files: Files, *arguments: Any) -> Any:
            step = step_of(*arguments)
            if step is not None:
                self._observer.before(step)
                if self._observer.skips(step):
                    return None
            if operation == "close":
                self._forget(arguments[0])
            done = real(files, *arguments)
            if operation == "open":
                self._remember(done, arguments[0], step)
            if step is not None:
                self._observer.after(step)
            return done

        return method

    def _remember(self, descriptor: int, path: str, step: Step | None) -> None:
        with self._lock:
            self._open[descriptor] = _Open(step.file if step else 0, path, kind_of(path))

    def _forget(self, descriptor: int) -> None:
        with self._lock:
            self._open.pop(descriptor, None)

    def _opening(self, path: str, flags: int) -> Step | None:
        if not flags & os.O_CREAT:
            return None
        with self._lock:
            self._files += 1
            return Step(f"{kind_of(path)}.create", "open", path, file=self._files)

    def _writing(self, descriptor: int, data: Any) -> Step:
        written = bytes(data)
        with self._lock:
            file = self._open[descriptor]
            if file.kind == "temporary":
                kind = next((kind for magic, kind in MAGICS.items() if written.startswith(magic)), "other")
                file = self._open[descriptor] = _Open(file.file, file.path, kind)
        return Step(f"{file.kind}.write", "write", file.path, file=file.file, data=written)

    def _on(self, descriptor: int, operation: str) -> Step:
        with self._lock:
            file = self._open[descriptor]
        return Step(f"{file.kind}.{operation}", operation, file.path, file=file.file)

    def _syncing_directory(self, descriptor: int) -> Step:
        with self._lock:
            path = self._open[descriptor].path
        return Step(directory_step(path), "sync_directory", path)

    def _unlinking(self, path: str) -> Step:
        kind = kind_of(path)
        what = "delete" if kind in DIRECTORIES.values() else "remove"
        return Step(f"{kind}.{what}", "unlink", path)


@contextmanager
def watched(observer: Observer) -> Iterator[None]:
    """Let the observer see every step of this process during the context."""
    files, commits = _Watched(observer), _Commits(observer)
    files.install()
    commits.install()
    try:
        yield
    finally:
        commits.remove()
        files.remove()


@contextmanager
def watched_objects(observer: Observer) -> Iterator[None]:
    """Let the observer see every object that this process puts into an object store, or deletes there, during the context."""
    from staddle_server.store.backends.object_store import ObjectBlobs

    def seen(real: Callable[..., Any], operation: str) -> Callable[..., Any]:
        @functools.wraps(real)
        def method(blobs: ObjectBlobs, name: str, *arguments: Any, **named: Any) -> Any:
            top = name.partition("/")[0]
            step = Step(f"{DIRECTORIES.get(top, top)}.{operation}", operation, name)
            observer.before(step)
            done = real(blobs, name, *arguments, **named)
            observer.after(step)
            return done

        return method

    real = {name: getattr(ObjectBlobs, name) for name in ("publish", "delete")}
    for (name, method), operation in zip(real.items(), ("put", "delete"), strict=True):
        setattr(ObjectBlobs, name, seen(method, operation))
    try:
        yield
    finally:
        for name, method in real.items():
            setattr(ObjectBlobs, name, method)


class _Commits:
    """The commits of every catalog of this process: before each, and once its connection is handed back."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._here = threading.local()
        self._write = database.Database.write

    def install(self) -> None:
        database.Database.write = self._method()  # type: ignore[method-assign]
        event.listen(Engine, "commit", self._before)
        event.listen(Engine, "rollback", self._forget)
        event.listen(Pool, "reset", self._after)

    def remove(self) -> None:
        database.Database.write = self._write  # type: ignore[method-assign]
        event.remove(Engine, "commit", self._before)
        event.remove(Engine, "rollback", self._forget)
        event.remove(Pool, "reset", self._after)

    def _method(self) -> Callable[..., Any]:
        real, here = self._write, self._here

        @contextmanager
        def write(catalog: database.Database, *, erase: bool = False) -> Iterator[Connection]:
            with real(catalog, erase=erase) as connection:
                here.writer = connection
                yield connection

        return write

    def _before(self, connection: Connection) -> None:
        if connection is getattr(self._here, "writer", None):
            step = Step(f"catalog.{_transaction()}", "commit", str(connection.engine.url.database))
            self._observer.before(step)
            self._here.step = step

    def _forget(self, _connection: Connection) -> None:
        self._here.step = None

    def _after(self, *_: object) -> None:
        step = getattr(self._here, "step", None)
        self._here.step = None
        if step is not None:
            self._observer.after(step)


def _transaction() -> str:
    """NOUN.METHOD of the catalog whose transaction this is, from the stack."""
    frame = sys._getframe()
    while frame is not None:
        where = frame.f_code.co_filename
        if os.path.basename(os.path.dirname(where)) == "catalog" and where != database.__file__:
            return f"{os.path.basename(where).removesuffix('.py')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "other"
