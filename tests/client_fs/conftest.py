from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from staddle._backup.run import backup_directory
from staddle._client import Client
from staddle._types.backups import BackupKind
from staddle._types.options import BackupOptions
from staddle._types.reports import BackupReport

SETTLED_NS = 10_000_000_000
NOBODY = 65_534


def settled_clock() -> int:
    """A clock so far ahead that no timestamp made by the test is too recent."""
    return time.time_ns() + SETTLED_NS


class Protected:
    """A dataset's source and a client, with a backup for each call."""

    def __init__(self, client: Client, source: Path, cache: Path) -> None:
        self.client = client
        self.source = source
        self.cache = cache

    def backup(
        self,
        source: Path | bytes | list[Path] | None = None,
        *,
        clock: Callable[[], int] = settled_clock,
        **options,
    ) -> BackupReport:
        options.setdefault("dataset", "data")
        options.setdefault("retry_s", 5.0)
        options.setdefault("cache_dir", str(self.cache))
        options["kind"] = BackupKind(options.get("kind", "auto"))
        given = self.source if source is None else source
        paths = list(map(os.fsencode, given if isinstance(given, list) else [given]))
        return backup_directory(self.client._calls, paths, BackupOptions(**options), clock)

    def restore(self, target: Path, dataset: str = "data", **options):
        return self.client.restore(dataset, target, **options)


@pytest.fixture
def protected(running, tmp_path: Path) -> Iterator[Protected]:
    source = tmp_path / "source"
    source.mkdir()
    with Client(running.address, running.token(), retry_s=5.0) as client:
        yield Protected(client, source, tmp_path / "cache")


@contextmanager
def _as_ordinary_user() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def as_ordinary_user() -> Callable[[], object]:
    """A context in which this process has no special rights."""
    return _as_ordinary_user


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user may enter, unlike those of tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="staddle-test-"))
    path.chmod(0o777)
    try:
        yield path
    finally:
        # Directories that a test closed must be opened again before an ordinary user can remove them.
        for at, names, _ in os.walk(path):
            for name in names:
                if not os.path.islink(os.path.join(at, name)):
                    os.chmod(os.path.join(at, name), 0o700)
        shutil.rmtree(path)
