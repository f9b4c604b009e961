"""How much there is to read, counted beside a backup that reads everything, so that its progress can say how much time is left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from staddle import BackupKind, DatasetNotFoundError, StaddleError
from staddle._backup.selection import excludes_for, find_source, omissions_of
from staddle._base.threads import start_thread
from staddle._fs.found import Found
from staddle._fs.scan import Scan
from staddle._options import backup_options
from staddle._types.options import SourceArguments

if TYPE_CHECKING:
    from staddle import Client


class ExpectedTotal:
    """The bytes of all regular files of a backup. Counting begins with the first call of `total`, in a thread.

    A backup that reads only what changed has no such total.
    """

    def __init__(
        self, client: Client, dataset: str, paths: Sequence[str], arguments: SourceArguments
    ) -> None:
        self._client = client
        self._paths = paths
        self._options = backup_options(dataset, arguments)
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
            source = find_source([os.fsencode(path) for path in self._paths], self._options)
            scan = Scan(
                source.root,
                _ignore,
                chosen=source.chosen,
                excluded=excludes_for(self._options.exclude, source.root),
                one_file_system=self._options.one_file_system,
                omissions=omissions_of(self._options),
            )
            self._total = sum(
                found.stat.st_size for found in scan if isinstance(found, Found) and found.is_file()
            )
        except (StaddleError, OSError):
            return  # the backup itself meets and reports the same error; here it only means no estimate

    def _reads_everything(self) -> bool:
        if self._options.kind is BackupKind.FULL or self._options.new_root:
            return True
        try:
            return next(self._client.backups(self._options.dataset), None) is None
        except DatasetNotFoundError:
            return True


def _ignore(_path: bytes, _why: str) -> None:
    """What cannot be read is reported by the backup."""
