"""`staddle ls` and `staddle cat`: what is in a backup."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from staddle import Entry, EntryType, ProtocolError
from staddle._base import figures
from staddle.command import json_output, text
from staddle.command.options import (
    ByteRange,
    Session,
    byte_range,
    command,
    dataset_argument,
    picking,
    reading,
    require_stdout,
    stored_path,
)
from staddle.command.output import Output
from staddle.command.text import INCOMPLETE

if TYPE_CHECKING:
    from staddle import Client

PIECE_BYTES: Final = 2 * 1024 * 1024
JSON_PIECE_BYTES: Final = 768 * 1024
"""So that a line of JSON has about 1 MiB; divisible by three, so that the pieces' base64 can be joined."""


# --- ls


@command(
    "ls",
    "List the files in a backup.",
    "staddle ls www",
    "staddle ls www etc/nginx -lR --at 3d",
)
@dataset_argument
@click.argument("path", required=False, default="", callback=reading(stored_path))
@picking
@click.option("-l", "long", is_flag=True, help="Show mode, owner, size and time of each entry.")
@click.option("-R", "recursive", is_flag=True, help="List everything below, not only one level.")
def ls(
    session: Session,
    dataset: str,
    path: bytes,
    *,
    backup: str | None,
    at: str | None,
    long: bool,
    recursive: bool,
) -> None:
    r"""List a directory of a backup (without PATH: its root).

    Paths are relative to the root, as restore and cat take them; those of directories end with a slash. Control characters and bytes
    that are not UTF-8 are shown as \n, \x1b, \xff.
    """
    with session.connect() as client:
        picked = client.get_backup(dataset, backup, at=at)
        totals = [0, 0]
        entries = _totalling(client.entries(dataset, path, backup=picked.id, recursive=recursive), totals)
        output = session.output
        if output.as_json:
            for entry in entries:
                output.record(json_output.of_entry(entry))
        elif long:
            output.table(map(_long_row, entries), right=frozenset({3}))
        else:
            output.table((text.path_shown(entry),) for entry in entries)
    count, data_bytes = totals
    record = {"entry_count": count, "data_bytes": data_bytes, "backup": json_output.of_backup(picked)}
    words = (
        f"{figures.counted(count, 'entry', 'entries')}, {figures.size(data_bytes)}, in {text.which(picked)}."
    )
    output.summary("ls", record, words)


def _totalling(entries: Iterator[Entry], totals: list[int]) -> Iterator[Entry]:
    for entry in entries:
        totals[0] += 1
        totals[1] += entry.size_bytes
        yield entry


def _long_row(entry: Entry) -> tuple[str, ...]:
    shown = text.path_shown(entry)
    if entry.type is EntryType.SYMLINK:
        shown += f" -> {text.escaped(entry.link_target_bytes)}"
    if entry.incomplete:
        shown += INCOMPLETE
    return (
        text.mode(entry),
        text.escaped(entry.owner) or _number(entry.uid),
        text.escaped(entry.group) or _number(entry.gid),
        _size(entry),
        _time(entry),
        shown,
    )


def _number(number: int | None) -> str:
    return "?" if number is None else str(number)


def _size(entry: Entry) -> str:
    if entry.device is not None:
        return f"{entry.device[0]}, {entry.device[1]}"
    return figures.size(entry.size_bytes) if entry.type is EntryType.FILE else "-"


def _time(entry: Entry) -> str:
    if entry.mtime_ns is None:
        return "?"
    return f"{entry.mtime_ns // 10**9} s" if entry.mtime is None else text.local(entry.mtime)


# --- cat


@command(
    "cat",
    "Write one file of a backup to standard output.",
    "staddle cat www etc/nginx/nginx.conf",
    "staddle cat www disk.img --range 0:512 | xxd",
)
@dataset_argument
@click.argument("path", callback=reading(stored_path))
@picking
@click.option(
    "--range",
    "wanted",
    callback=reading(byte_range),
    default=":",
    metavar="A:B",
    help="Write only the bytes from A up to but not including B, counted from 0; either may be missing.",
)
def cat(
    session: Session, dataset: str, path: bytes, *, backup: str | None, at: str | None, wanted: ByteRange
) -> None:
    """Write one file of a backup to standard output, unchanged. Standard error names the backup.

    With --json its bytes come as base64, in pieces.
    """
    require_stdout()
    output = session.output
    with session.connect() as client:
        picked = client.get_backup(dataset, backup, at=at)
        piece_bytes = JSON_PIECE_BYTES if output.as_json else PIECE_BYTES
        pieces = _pieces(client, dataset, path, backup_id=picked.id, wanted=wanted, piece_bytes=piece_bytes)
        first = next(pieces, b"")
        if not output.as_json:
            output.notice(f"{text.escaped(path)} from {text.which(picked)}")
        written = _write(output, first, wanted.start)
        for piece in pieces:
            written += _write(output, piece, wanted.start + written)
    if output.as_json:
        record = {
            **json_output.name("path", path),
            "data_bytes": written,
            "backup": json_output.of_backup(picked),
        }
        output.summary("cat", record, "")


def _pieces(
    client: Client, dataset: str, path: bytes, *, backup_id: str, wanted: ByteRange, piece_bytes: int
) -> Iterator[bytes]:
    with client.open(dataset, path, backup=backup_id) as file:
        size = file.seek(0, os.SEEK_END)
        position = file.seek(min(wanted.start, size))
        end = size if wanted.end is None else min(wanted.end, size)
        while position < end:
            piece = file.read(min(piece_bytes, end - position))
            if not piece:
                raise ProtocolError("The file ended before its size was reached.")
            position += len(piece)
            yield piece


def _write(output: Output, piece: bytes, offset: int) -> int:
    if not piece:
        return 0
    if output.as_json:
        output.record({"offset_bytes": offset, "data_base64": base64.b64encode(piece).decode()})
    else:
        sys.stdout.buffer.write(piece)
    return len(piece)
