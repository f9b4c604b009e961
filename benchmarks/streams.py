"""`make bench-wire`: how much of what one gRPC stream can carry Staddle's streams carry, in and out, measured in the same run.

In: the thin Backup stream with an image that the store does not have, and then with the same image again, as another backup: all of
it travels, and nothing is stored. Out: the Restore stream, which is dropped as it comes. Beside each the limit: a server of gRPC
alone with the same options, which drops the same messages, or sends as many bytes (benchmarks/programs/bare_stream.py). The client sends messages
that were made before. They take turns; each round has a new store; the figures are medians.
"""

import argparse
import filecmp
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from benchmarks import compare
from benchmarks.data import corpora
from benchmarks.programs import bare_stream, machine
from benchmarks.programs.processes import BIN, MIB, ProgramError, Server, run, staddle
from benchmarks.tables import sections

GIB: Final = 1024 * MIB
KIND: Final = "wire"
AIM: Final = 0.70
"""Of the limit, for data that the store has already."""
NEW_SHARE_MAX: Final = 0.02
"""So much of the data may a backup add that the store has already: its manifest."""
NAME: Final = "disk.img"
SERVICE: Final = sv.DESCRIPTOR.services_by_name["StaddleService"].full_name
BACKUP: Final = f"/{SERVICE}/Backup"
RESTORE: Final = f"/{SERVICE}/Restore"

LIMIT_IN, AGAIN, FIRST = "limit in", "again", "first"
LIMIT_OUT, RESTORED = "limit out", "restore"
WORDS: Final = {
    LIMIT_IN: "in: the limit",
    AGAIN: "in: data that the store has",
    FIRST: "in: data that is new",
    LIMIT_OUT: "out: the limit",
    RESTORED: "out: restore",
}
LIMITS: Final = {
    LIMIT_IN: LIMIT_IN,
    AGAIN: LIMIT_IN,
    FIRST: LIMIT_IN,
    LIMIT_OUT: LIMIT_OUT,
    RESTORED: LIMIT_OUT,
}
"""What each is a share of."""
TURNS: Final = (
    (LIMIT_IN, FIRST, AGAIN, LIMIT_OUT, RESTORED),
    (FIRST, AGAIN, LIMIT_IN, RESTORED, LIMIT_OUT),
)
"""The order of a round, and of the next one."""

Figures = dict[str, list[dict[str, float]]]
"""By way, what was measured in each round."""


class Messages:
    """What is sent, in files that `pipe` reads: heads that name a dataset, and the bytes, which all share."""

    def __init__(self, place: Path, image: Path, message_bytes: int) -> None:
        self._place = place
        self.data_bytes = image.stat().st_size
        self.body, self.tail = place / "body", place / "tail"
        bare_stream.write_messages(self.body, _pieces(image, message_bytes))
        end = sv.BackupPart(entry_end=sv.EntryEnd(size_bytes=self.data_bytes))
        finish = sv.BackupPart(finish=sv.Finish(entry_count=1, data_bytes=self.data_bytes))
        bare_stream.write_messages(self.tail, [sv.BackupRequest(parts=[end, finish]).SerializeToString()])

    def backup(self, dataset: str) -> list[Path]:
        """A whole Backup stream."""
        begin = sv.BackupPart(begin=sv.BeginUploadRequest(dataset=dataset, kind=pb.BACKUP_KIND_FULL))
        entry = sv.BackupPart(entry=pb.Entry(path=NAME))
        head = self._place / "head"
        bare_stream.write_messages(head, [sv.BackupRequest(parts=[begin, entry]).SerializeToString()])
        return [head, self.body, self.tail]

    def request(self, message: bytes) -> Path:
        """A file of one message."""
        path = self._place / "request"
        bare_stream.write_messages(path, [message])
        return path


def _pieces(image: Path, size: int) -> Iterator[bytes]:
    with image.open("rb", buffering=0) as file:
        while piece := file.read(size):
            part = sv.BackupPart(data=sv.Data(data=piece))
            yield sv.BackupRequest(parts=[part]).SerializeToString()


class Round:
    """One store, and everything measured once."""

    def __init__(self, ours: Server, limit: Server, messages: Messages, message_bytes: int) -> None:
        self._ours = ours
        self._limit = limit
        self._messages = messages
        self._message_bytes = message_bytes

    def measure(self, way: str) -> dict[str, float]:
        """Seconds, processor time of both ends, and messages of one stream. Raises ProgramError."""
        size = self._messages.data_bytes
        if way == LIMIT_IN:
            return self._carry(self._limit, "send", bare_stream.IN, self._messages.backup("limit"))
        if way in {FIRST, AGAIN}:
            before = self._ours.pack_bytes
            taken = self._carry(self._ours, "send", BACKUP, self._messages.backup(way))
            if way == AGAIN and self._ours.pack_bytes - before > size * NEW_SHARE_MAX + MIB:
                raise ProgramError("what the store had already was stored once more")
            return taken
        if way == LIMIT_OUT:
            asked = bare_stream.order(size, self._message_bytes)
            return self._carry(self._limit, "receive", bare_stream.OUT, [self._messages.request(asked)])
        asked = sv.RestoreRequest(dataset=FIRST).SerializeToString()
        taken = self._carry(self._ours, "receive", RESTORE, [self._messages.request(asked)])
        if taken["message_bytes"] < size:
            raise ProgramError("the restore brought less than there is")
        return taken

    def _carry(self, server: Server, what: str, method: str, files: Sequence[Path]) -> dict[str, float]:
        machine.touch_free_memory(compare.touched_bytes(self._messages.data_bytes))
        os.sync()
        server.go_on()
        before_s = server.cpu_s
        argv = [
            sys.executable,
            "-m",
            "benchmarks.programs.bare_stream",
            what,
            "--server",
            server.address,
            method,
            *files,
        ]
        finished = run(argv, env=self._ours.environment).checked()
        server_cpu_s = server.cpu_s - before_s
        server.pause()
        carried = finished.summary
        return {
            "seconds": carried["seconds"],
            "client_cpu_s": carried["cpu_s"],
            "server_cpu_s": server_cpu_s,
            "messages": carried["messages"],
            "message_bytes": carried["message_bytes"],
        }


def measure(place: Path, rounds: int, data_bytes: int, message_bytes: int, *, tls: bool) -> Figures:
    """All rounds. Raises ProgramError where something did not do what it should."""
    image = place / NAME
    corpora.make_blocks(image, data_bytes, "wire")
    messages = Messages(place, image, message_bytes)
    options = _certificate(place) if tls else ()
    figures: Figures = {way: [] for way in WORDS}
    with bare_stream.PipeServer(place / "limit", options=options) as limit:
        limit.pause()
        for number in range(rounds):
            with Server(place / "server", options=options) as ours:
                ours.pause()
                this = Round(ours, limit, messages, message_bytes)
                for way in TURNS[number % len(TURNS)]:
                    figures[way].append(this.measure(way))
                    speed = data_bytes / MIB / figures[way][-1]["seconds"]
                    print(f"  round {number + 1}  {WORDS[way]:<28}{speed:>8,.0f} MiB/s", flush=True)
                ours.go_on()
                if number == 0:
                    _check(place, ours, image)
            shutil.rmtree(place / "server")
        limit.go_on()
    return figures


def _certificate(place: Path) -> tuple[str | Path, ...]:
    """A server's certificate for this machine, as options of both servers."""
    argv: list[str | Path] = [BIN / "staddle-server", "cert", "--dir", place / "tls", "--host", "127.0.0.1"]
    run(argv).checked()
    return ("--tls-cert", place / "tls" / "server.crt", "--tls-key", place / "tls" / "server.key")


def _check(place: Path, server: Server, image: Path) -> None:
    """Raises ProgramError unless both backups give back what was sent."""
    for dataset in (FIRST, AGAIN):
        target = place / f"restored-{dataset}"
        run(staddle("restore", dataset, "--target", target), env=server.environment).checked()
        if not filecmp.cmp(target / NAME, image, shallow=False):
            raise ProgramError(f"the backup {dataset!r} did not give back what was sent")
        shutil.rmtree(target)


# --- what comes of it


def _median(record: Mapping[str, Any], way: str, name: str) -> float:
    return float(statistics.median(each[name] for each in record["ways"][way]))


def speed_mib(record: Mapping[str, Any], way: str) -> float:
    """Median MiB/s."""
    return float(record["data_bytes"]) / MIB / _median(record, way, "seconds")


def share(record: Mapping[str, Any], way: str) -> float:
    """Of the limit, by medians."""
    return speed_mib(record, way) / speed_mib(record, LIMITS[way])


def _rows(record: Mapping[str, Any]) -> list[list[str]]:
    gib = record["data_bytes"] / GIB
    return [
        [
            words,
            f"{speed_mib(record, way):,.0f}",
            f"{share(record, way):.2f}",
            f"{_median(record, way, 'client_cpu_s') / gib:.2f}",
            f"{_median(record, way, 'server_cpu_s') / gib:.2f}",
        ]
        for way, words in WORDS.items()
    ]


HEAD: Final = ["one stream", "MiB/s", "of the limit", "client CPU, s/GiB", "server CPU, s/GiB"]


def title(record: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    return f"One stream{' over TLS' if record['tls'] else ''}, {record['data_bytes'] // MIB:,} MiB in messages of {record['message_bytes'] // 1024:,} KiB"


def section(record: Mapping[str, Any]) -> list[str]:
    """The lines of docs/performance.md, from what `main` wrote."""
    rounds = len(record["ways"][AGAIN])
    reached = share(record, AGAIN)
    return [
        f"### {title(record)}",
        "",
        f"{'One round' if rounds == 1 else f'Medians of {rounds} rounds'}. The limit is gRPC alone: a server with the same options that drops what comes, or sends as much.",
        "",
        f"![Speed of one stream](performance/{KIND}.svg)",
        "",
        *sections.table(HEAD, _rows(record)),
        "",
        f"Data that the store has: {reached:.2f} of the limit; the aim of {AIM:.2f} is {'met' if reached >= AIM else 'not met'}.",
    ]


def draw(record: Mapping[str, Any], to: Path) -> None:
    """A bar for each stream, the limits in another colour."""
    figure = sections.figure(8, 2.6)
    axes = figure.subplots()
    ways = list(WORDS)
    bars = axes.barh(
        [WORDS[way] for way in ways],
        [speed_mib(record, way) for way in ways],
        color=["0.7" if LIMITS[way] == way else "C0" for way in ways],
    )
    axes.bar_label(bars, [f"{share(record, way):.2f}" for way in ways], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("MiB/s; beside each bar its share of the limit")
    axes.set_title(title(record))
    sections.keep(figure, to)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench-wire", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often everything is measured (%(default)s)"
    )
    parser.add_argument("--mib", type=int, default=512, help="size of the image (%(default)s)")
    parser.add_argument(
        "--message-kib", type=int, default=1024, help="data in each message, at most 4000 (%(default)s)"
    )
    parser.add_argument("--tls", action="store_true", help="over TLS; without it as on one machine: without")
    parser.add_argument("--work", type=Path, help="where to work (the directory for temporary files)")
    given = parser.parse_args(arguments)
    if not (given.rounds > 0 and given.mib > 0 and 0 < given.message_kib <= 4000):
        parser.error("rounds, MiB and KiB are at least 1, and a message has at most 4000 KiB")
    place = Path(tempfile.mkdtemp(prefix="staddle-wire-", dir=given.work))
    try:
        facts = machine.describe(place)
        figures = measure(place, given.rounds, given.mib * MIB, given.message_kib * 1024, tls=given.tls)
    except ProgramError as error:
        sys.exit(f"Nothing was measured: {error}")
    finally:
        shutil.rmtree(place)
    record = {
        "data_bytes": given.mib * MIB,
        "message_bytes": given.message_kib * 1024,
        "tls": given.tls,
        "ways": figures,
    }
    print(f"\n{title(record)}, medians of {given.rounds}:\n{sections.in_columns(HEAD, _rows(record))}")
    print(f"All figures: {sections.save(KIND, {'machine': facts, **record})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
