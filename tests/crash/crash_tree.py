"""The bundled client on a changing directory: it cuts at the source, sends missing chunks, and resumes."""

from __future__ import annotations

from crash_work import Attempt, LostError, Place, Worker
from staddle import BackupReport, Client
from staddle.v1 import resources_pb2 as pb
from thin import restore


class TreeWorker(Worker):
    """`staddle backup DIRECTORY`, again and again; after a crash with the same arguments once more."""

    def __init__(self, name: str, seed: int, place: Place) -> None:
        super().__init__(name, seed, place)
        self._tree = place.data.parent / f"{name}-source"
        self._tree.mkdir()

    def work(self, stub: object, operations: int) -> None:
        for _ in range(operations):
            self._change()
            self._count += 1
            files = {
                str(path.relative_to(self._tree)): path.read_bytes()
                for path in self._tree.rglob("*")
                if path.is_file()
            }
            self.pending = Attempt(
                f"{self.dataset}-{self._count}", files, {}, pb.UPLOAD_SCOPE_WHOLE, by_source=True
            )
            self._back_up()

    def settle(self, stub: object) -> None:
        """A commit that nobody heard of may have made a backup: whole, or not at all. Then the command is given again."""
        if self.pending is None:
            return
        known = {attempt.backup for attempt in self.kept}
        for backup in self._listed(stub):
            if backup.id in known:
                continue
            found = restore(stub, self.dataset, backup=pb.BackupSelector(backup=backup.id))
            if found.files != self.pending.files or found.damages:
                raise LostError(f"{self.pending.request_id} was not acknowledged, and is there in part")
            self.kept.append(Attempt(**{**vars(self.pending), "backup": backup.id}))
        self._back_up()

    def _back_up(self) -> None:
        attempt = self.pending
        assert attempt is not None
        report = self._report()
        if not report.complete:
            raise LostError(f"{attempt.request_id} is not complete: {report.problems}")
        self.tally.resumed += report.resumed
        attempt.backup = report.backup.id
        self.kept.append(attempt)
        self.pending = None
        self.tally.acknowledged += 1

    def _report(self) -> BackupReport:
        with Client.from_config(self.place.data / "client.toml", retry_s=0) as client:
            return client.backup(self._tree, dataset=self.dataset, retry_s=0)

    def _change(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            path = self._tree / f"d{self.random.randint(0, 3)}" / f"f{self.random.randint(0, 9)}"
            path.parent.mkdir(exist_ok=True)
            if path.exists() and self.random.random() < 0.3:
                path.unlink()
            else:
                path.write_bytes(self._data())
