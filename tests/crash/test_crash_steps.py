"""The names of the steps: docs/safety.md lists all of them, and a commit is seen before and after it happens."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from crash_power import DATA
from crash_steps import Observer, Step, watched
from staddle_server import catalog
from staddle_server.app.data_directory import ClientConfig, write_client_config
from staddle_server.catalog import open_catalog
from staddle_server.store.backends.directory import DirectoryBlobs

PAGE = (Path(__file__).parents[2] / "docs" / "safety.md").read_text()
CATALOG = "catalog.NOUN.METHOD"


class Seen(Observer):
    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    def before(self, step: Step) -> None:
        self.all.append(("before", step.name))

    def after(self, step: Step) -> None:
        self.all.append(("after", step.name))


def documented() -> set[str]:
    section = PAGE[PAGE.index("## Durable steps") : PAGE.index("## Kills")]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_the_table_has_exactly_the_steps_of_a_server(recorded, tmp_path: Path) -> None:
    names = {event.step.name for event in recorded.events}
    seen = Seen()
    shutil.copytree(recorded.root / DATA / "store", tmp_path / "store")
    with watched(seen):
        blobs = DirectoryBlobs(str(tmp_path / "store"))
        for kind in ("packs", "records", "keys"):
            blobs.delete(next(blobs.list(kind))[0])
        write_client_config(tmp_path / "client.toml", ClientConfig("127.0.0.1:1", "token"))
    names = (names | {name for _, name in seen.all}) - {"answer"}
    nouns = {path.stem for path in Path(catalog.__file__).parent.glob("*.py")}
    transactions = {name for name in names if name.startswith("catalog.")}
    assert {name.split(".")[1] for name in transactions} <= nouns
    assert names - transactions | {CATALOG} == documented()


def test_a_commit_has_a_before_and_an_after_and_a_rollback_has_neither(tmp_path: Path) -> None:
    made = open_catalog(str(tmp_path / "catalog.db"))
    seen = Seen()
    with watched(seen):
        made.tenants.create(bytes(16), "a", 1, record=b"made")
        with pytest.raises(Exception, match="exists already"):
            made.tenants.create(bytes(16), "a", 1, record=b"made")
        made.tenants.list_all()
    made.close()
    assert seen.all == [("before", "catalog.tenants.create"), ("after", "catalog.tenants.create")]
