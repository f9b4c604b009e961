"""How much there is to read, counted beside a backup that reads everything, so that its progress can say how long still."""

import dataclasses
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from staddle import Client, DatasetNotFoundError, StaddleError
from staddle._base.threads import start_thread
from staddle._fs.chosen_paths import source_of
from staddle._fs.excludes import excludes_of
from staddle._fs.omissions import Omissions
from staddle._fs.walk import Found, Scan
from staddle._types.options import SourceArguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is the same for all sources. The fields are arguments of the library."""

    dataset: str
    kind: str
    tags: dict[str, str]
    new_root: bool
    retry_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which part of a directory, and on which conditions. The fields are arguments of the library; files of patterns have been read."""

    paths: tuple[bytes, ...] | None = None
    exclude: tuple[str, ...] = ()
    exclude_caches: bool = True
    exclude_if_present: tuple[str, ...] = ()
    exclude_larger_than_bytes: int | None = None
    one_file_system: bool = False
    max_removed_percent: float | None = None
    host: str | None = None

    def arguments(self, wanted: Wanted) -> SourceArguments:
        """What a backup and its dry run are asked for alike."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return cast("SourceArguments", {**fields, "kind": wanted.kind, "new_root": wanted.new_root})


class Expected:
    """The bytes of all regular files of a backup. Counting begins when somebody first asks, in a thread of its own.

    A backup that reads only what changed has no such total: how much that will be, nobody knows before.
    """

    def __init__(self, client: Client, paths: Sequence[str], wanted: Wanted, selection: Selection) -> None:
        self._client = client
        self._paths = paths
        self._wanted = wanted
        self._selection = selection
        self._total: int | None = None
        self._asked = False

    def total(self) -> int | None:
        """The bytes; None: not known, or not yet."""
        if not self._asked:
            self._asked = True
            with suppress(RuntimeError, MemoryError):  # without a thread there is no estimate
                start_thread("staddle-count", self._count)
        return self._total

    def _count(self) -> None:
        try:
            if not self._reads_everything():
                return
            selection = self._selection
            source = source_of([os.fsencode(path) for path in self._paths], selection.paths)
            scan = Scan(
                source.root,
                _ignore,
                chosen=source.chosen,
                excluded=excludes_of(selection.exclude, root=source.root),
                one_file_system=selection.one_file_system,
                omissions=Omissions(
                    selection.exclude_caches,
                    tuple(map(os.fsencode, selection.exclude_if_present)),
                    selection.exclude_larger_than_bytes,
                ),
            )
            self._total = sum(
                found.stat.st_size for found in scan if isinstance(found, Found) and found.is_file()
            )
        except (StaddleError, OSError):
            return  # the backup itself meets the same and says so; here it only means that there is no estimate

    def _reads_everything(self) -> bool:
        if self._wanted.kind == "full" or self._wanted.new_root:
            return True
        try:
            return next(self._client.backups(self._wanted.dataset), None) is None
        except DatasetNotFoundError:
            return True


def _ignore(_path: bytes, _why: str) -> None:
    """What cannot be read is reported by the backup."""
