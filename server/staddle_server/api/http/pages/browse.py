"""Looking into backups: a directory, a file with its versions, and what changed between two backups."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from staddle_server.api import convert
from staddle_server.api.http.pages.dataset import line_of
from staddle_server.api.http.pages.versions import history_of
from staddle_server.api.http.pages.visit import Shown, Visit
from staddle_server.api.http.pages.words import path_words
from staddle_server.base.errors import BadRequest, Damaged, NotFound, Precondition
from staddle_server.base.limits import KIB, MIB
from staddle_server.base.types import Entry, EntryType
from staddle_server.catalog import Backup, BackupPoint
from staddle_server.manifest.compare import Changed, ChangeType
from staddle_server.restore.browse import Selector

ENTRIES: Final = 200
CHANGES: Final = 500
STOPS: Final = 180
"""Backups to choose from: about so many, over the whole history."""
TEXT_BYTES_MAX: Final = 256 * KIB
IMAGE_BYTES_MAX: Final = 8 * MIB
IMAGES: Final = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF"}
"""Types that run nothing, by how a file begins, whatever its name says."""
MARKS: Final = {
    ChangeType.ADDED: ("+", "added"),
    ChangeType.REMOVED: ("-", "removed"),
    ChangeType.CONTENT: ("~", "changed"),
    ChangeType.METADATA: ("m", "metadata"),
}


class BrowsedPath(NamedTuple):
    """Where somebody looks: a dataset, one of its backups, and a path in it."""

    dataset: str
    backup: Backup
    path: bytes
    points: Sequence[BackupPoint]

    def link(
        self, page: str, path: bytes | None = None, backup: str = "", more: Mapping[str, str] | None = None
    ) -> str:
        """Return the address of a page about the same place, or another one."""
        fields = {"dataset": self.dataset, "backup": backup or self.backup.id.hex()}
        return f"/{page}?{urlencode(fields | path_fields(self.path if path is None else path) | dict(more or {}))}"

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Return the directories above, each with its address."""
        parts = self.path.split(b"/") if self.path else []
        return [
            (path_words(part), self.link("browse", b"/".join(parts[: number + 1])))
            for number, part in enumerate(parts[:-1])
        ]

    @property
    def name(self) -> str:
        """Return the path for people."""
        return path_words(self.path) or "/"

    @property
    def download(self) -> str:
        """Return the address of the file's bytes."""
        return f"{self._download}/files/{quote(self.path)}"

    def archive(self, form: str) -> str:
        """Return the address of an archive of the directory."""
        return f"{self._download}/archive?format={form}&path={quote(self.path, safe='')}"

    @property
    def _download(self) -> str:
        return f"/download/datasets/{quote(self.dataset, safe='')}/backups/{self.backup.id.hex()}"


def path_fields(path: bytes) -> dict[str, str]:
    """Return a path as fields of an address: as text, or in hexadecimal digits where it is not UTF-8."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {"raw": path.hex()}


def looked_at(visit: Visit) -> BrowsedPath:
    dataset = convert.dataset_name(visit.query.get("dataset", ""))
    line_of(visit, dataset)
    raw = visit.query.get("raw", "")
    try:
        path = bytes.fromhex(raw) if raw else visit.query.get("path", "").encode()
    except ValueError:
        raise BadRequest("BAD_FIELD", "raw: expected hexadecimal digits", field="raw") from None
    chosen = visit.query.get("backup", "")
    backup = visit.sources.reads.pick(visit.principal, dataset, Selector(backup=chosen))
    points = visit.sources.catalog.overview.stops(visit.principal.tenant, dataset, backup.number, STOPS)
    return BrowsedPath(dataset, backup, path, points[::-1])


def values_of(looked: BrowsedPath) -> dict[str, Any]:
    place = next((place for place, each in enumerate(looked.points) if each.id == looked.backup.id), None)
    if place is None:
        raise NotFound(
            "BACKUP_NOT_FOUND", "This backup was deleted a moment ago", backup=looked.backup.id.hex()
        )
    return {
        "looked": looked,
        "fields": path_fields(looked.path),
        "newer": looked.points[place - 1] if place else None,
        "older": looked.points[place + 1] if place + 1 < len(looked.points) else None,
        "place": place,
        "kept": {},
        "kinds": EntryType,
    }


# ---------------------------------------------------------------------- a directory


def browse_page(visit: Visit) -> Shown:
    """Show the entries of a directory."""
    looked = looked_at(visit)
    values = values_of(looked) | {"missing": False, "damage": ""}
    entries: list[Entry] = []
    more = False
    after = after_in(visit)
    try:
        for each in visit.sources.reads.entries(
            visit.principal, looked.backup, looked.path, recursive=False, after=after, check=visit.call.check
        ):
            if len(entries) == ENTRIES:
                more = True
                break
            entries.append(each.entry)
    except NotFound:
        values["missing"] = True
    except Damaged as error:
        values["damage"] = error.message
    following = looked.link("browse", more={"after": entries[-1].path.hex()}) if more else ""
    base = posixpath.basename
    rows = [(each, path_words(base(each.path)), entry_link(looked, each)) for each in entries]
    return Shown("browse.html", values | {"rows": rows, "following": following})


def after_in(visit: Visit) -> bytes | None:
    """Return the path to continue behind; None for the beginning, also if the address has none that can be read."""
    try:
        return bytes.fromhex(visit.query.get("after", "")) or None
    except ValueError:
        return None


def entry_link(looked: BrowsedPath, entry: Entry) -> str:
    page = {EntryType.DIRECTORY: "browse", EntryType.FILE: "file"}.get(entry.type, "")
    return looked.link(page, entry.path) if page else ""


# ---------------------------------------------------------------------- a file


def file_page(visit: Visit) -> Shown:
    """Show a file: its metadata, a preview, and, if asked, its versions."""
    looked = looked_at(visit)
    values = values_of(looked) | {"entry": None, "text": None, "image": "", "why": ""}
    values |= {"missing": "", "damage": ""}
    try:
        values["entry"] = entry = _find(visit, looked.backup, looked.path)
        values |= _preview(visit, looked, entry)
    except Damaged as error:
        values["damage"] = error.message
    except NotFound:
        values["missing"] = "This backup has no such file"
    except Precondition:
        values["missing"] = "In this backup, this is not a file"
    history = history_of(visit, looked.dataset, looked.path) if "versions" in visit.query else None
    kept = {"versions": "1"} if history else {}
    return Shown("file.html", values | {"history": history, "kept": kept})


def _find(visit: Visit, backup: Backup, path: bytes) -> Entry:
    """Return the entry of a file. Raises NotFound, and Precondition if the path is not a file."""
    found = visit.sources.reads.entries(
        visit.principal, backup, path, recursive=False, after=None, check=visit.call.check
    )
    for each in found:
        if each.entry.path == path and each.entry.type is EntryType.FILE:
            return each.entry
        break
    raise Precondition("NOT_A_FILE", f"'{path_words(path)}' is not a file", path=path_words(path))


def _preview(visit: Visit, looked: BrowsedPath, entry: Entry) -> dict[str, str]:
    size = entry.content.size if entry.content is not None else 0
    head = _read(visit, looked, min(size, 16))
    kind = next((kind for magic, kind in IMAGES.items() if head.startswith(magic)), "")
    if kind:
        is_small = size <= IMAGE_BYTES_MAX
        return {"image": kind} if is_small else {"why": f"This {kind} is too large for a preview"}
    if size > TEXT_BYTES_MAX:
        return {"why": "It is too large for a preview"}
    try:
        text = _read(visit, looked, size).decode()
    except UnicodeDecodeError:
        return {"why": "It is not text"}
    return {"text": text} if "\0" not in text else {"why": "It is not text"}


def _read(visit: Visit, looked: BrowsedPath, length: int) -> bytes:
    if not length:
        return b""
    found = visit.sources.reads.read_range(
        visit.principal, looked.backup, looked.path, 0, length, check=visit.call.check
    )
    return bytes(found.data)


# ---------------------------------------------------------------------- two backups


def compare_page(visit: Visit) -> Shown:
    """Show what changed between two backups: from the one before, unless given."""
    looked = looked_at(visit)
    values = values_of(looked)
    other = visit.query.get("from", "") or (values["older"].id.hex() if values["older"] else "")
    if not other:
        return Shown("compare.html", values | {"before": None, "rows": [], "following": ""})
    reads = visit.sources.reads
    before = reads.pick(visit.principal, looked.dataset, Selector(backup=other))
    behind = after_in(visit)
    rows: list[tuple[Changed, str, str]] = []
    more = False
    for each in reads.changes(visit.principal, before, looked.backup, behind, visit.call.check):
        if len(rows) == CHANGES:
            more = True
            break
        rows.append((each, *MARKS[each.type]))
    following = ""
    if more:
        following = looked.link("compare", more={"from": before.id.hex(), "after": rows[-1][0].path.hex()})
    return Shown("compare.html", values | {"before": before, "rows": rows, "following": following})
