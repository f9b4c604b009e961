"""How much there is to read, counted beside a backup that reads everything, so that its progress can say how much time is left."""

import os
from collections.abc import Sequence
from contextlib import suppress

from staddle import Client, DatasetNotFoundError, StaddleError
from staddle._base.threads import start_thread
from staddle._fs.chosen_paths import source_of
from staddle._fs.excludes import excludes_of
from staddle._fs.found import Found
from staddle._fs.omissions import Omissions
from staddle._fs.scan import Scan
from staddle._types.entries import path_to_bytes
from staddle._types.options import SourceArguments


class ExpectedTotal:
    """The bytes of all regular files of a backup. Counting begins with the first call of `total`, in a thread.

    A backup that reads only what changed has no such total.
    """

    def __init__(
        self, client: Client, dataset: str, paths: Sequence[str], arguments: SourceArguments
    ) -> None:
        self._client = client
        self._paths = paths
        self._dataset = dataset
        self._arguments = arguments
        self._total: int | None = None
        self._asked = False

    def total(self) -> int | None:
        """The bytes; None: not known, or not yet."""
        if not self._asked:
            self._asked = True
            with suppress(RuntimeError, MemoryError):  # no thread, no estimate
                start_thread("staddle-count", self._count)
        return self._total

    def _count(self) -> None:
        try:
            if not self._reads_everything():
                return
            wanted = self._arguments
            listed = wanted.get("paths")
            source = source_of(
                [os.fsencode(path) for path in self._paths],
                None if listed is None else map(path_to_bytes, listed),
            )
            scan = Scan(
                source.root,
                _ignore,
                chosen=source.chosen,
                excluded=excludes_of(wanted.get("exclude", ()), root=source.root),
                one_file_system=wanted.get("one_file_system", False),
                omissions=Omissions(
                    wanted.get("exclude_caches", True),
                    tuple(map(os.fsencode, wanted.get("exclude_if_present", ()))),
                    wanted.get("exclude_larger_than_bytes"),
                ),
            )
            self._total = sum(
                found.stat.st_size for found in scan if isinstance(found, Found) and found.is_file()
            )
        except (StaddleError, OSError):
            return  # the backup itself meets and reports the same error; here it only means no estimate

    def _reads_everything(self) -> bool:
        if self._arguments.get("kind") == "full" or self._arguments.get("new_root"):
            return True
        try:
            return next(self._client.backups(self._dataset), None) is None
        except DatasetNotFoundError:
            return True


def _ignore(_path: bytes, _why: str) -> None:
    """What cannot be read is reported by the backup."""
