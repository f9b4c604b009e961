"""The programs that are compared, each behind the same few questions: Staddle's two ways, restic and borg.

All compress and all encrypt with authentication, each at what it is usually run with: Staddle zstd 1 and AES-256-GCM; restic
repository version 2, compression `auto`, AES-256-CTR with Poly1305; borg `--compression zstd,1`, `--encryption repokey-blake2`. Chunk
sizes are each program's own. restic and borg write into a directory of this machine by themselves; Staddle's client talks to a server
over loopback, and the processor time and memory of both are counted.
"""

import enum
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.processes import ProgramError, Server, run, staddle, tree_bytes

BORG: Final = Path(__file__).parents[1] / ".tools" / "borg" / "bin" / "borg"
PASSPHRASE: Final = "benchmark"
RESTIC_COMPRESSION_SINCE: Final = (0, 14)


class Phase(enum.StrEnum):
    """What is measured, in this order."""

    FIRST = "first backup"
    UNCHANGED = "unchanged"
    """The same data again; what looks unchanged is not read."""
    RESCAN = "rescan"
    """The same data again, and all of it is read."""
    RESTORE = "restore"


class Command(NamedTuple):
    """A program to run, and where."""

    argv: list[str | Path]
    env: Mapping[str, str]
    cwd: Path


class Peer(ABC):
    """A program that makes backups, with a repository of its own for each round."""

    name: str
    phases: tuple[Phase, ...] = tuple(Phase)
    server: Server | None = None
    """A process of its own that works for it."""

    @abstractmethod
    def missing(self) -> str:
        """Why it cannot run here; empty: it can."""

    @abstractmethod
    def version(self) -> str:
        """What it calls itself."""

    @abstractmethod
    def open(self, place: Path) -> None:
        """Makes a repository in a directory that is not there yet."""

    @abstractmethod
    def command(self, phase: Phase, source: Path, target: Path) -> Command:
        """Backs up the content of the directory `source`, or restores it straight into the empty directory `target`."""

    def fault(self, phase: Phase, out: str) -> str:
        """What it did other than the phase wants, such as read what it should not; empty: nothing that it would tell."""
        return ""

    @abstractmethod
    def stored_bytes(self) -> int:
        """What the repository takes, everything included but caches of the client."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends what `open` began."""


class Staddle(Peer):
    """Source-side: cut here, ask what is missing, send that."""

    name = "staddle"
    options: tuple[str, ...] = ()

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return run(staddle("--version")[:-1]).checked().out.strip()

    def open(self, place: Path) -> None:
        self.server = Server(place)
        self.server.start()

    def command(self, phase: Phase, source: Path, target: Path) -> Command:
        assert self.server is not None
        backup = staddle("backup", source, "--dataset", "data", *self.options)
        argv = {
            Phase.FIRST: backup,
            Phase.UNCHANGED: [*backup, "--kind", "incremental"],
            Phase.RESCAN: [*backup, "--kind", "full"],
            Phase.RESTORE: staddle("restore", "data", "--target", target),
        }
        return Command(argv[phase], self.server.environment, source)

    def fault(self, phase: Phase, out: str) -> str:
        report = json.loads(out.strip().splitlines()[-1])
        read, all_bytes = report.get("read_bytes"), report["data_bytes"]
        if phase is Phase.UNCHANGED and read:
            return f"it read {read} bytes of what had not changed"
        if phase in {Phase.FIRST, Phase.RESCAN} and read < all_bytes:
            return f"it read {read} bytes of {all_bytes}"
        return ""

    def stored_bytes(self) -> int:
        assert self.server is not None
        return self.server.stored_bytes

    def close(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None


class StaddleThin(Staddle):
    """All bytes travel, and the server cuts them. Its restore is the other's."""

    name = "staddle --thin"
    options = ("--thin",)
    phases = (Phase.FIRST, Phase.UNCHANGED, Phase.RESCAN)


class Restic(Peer):
    """restic, as Debian has it, on a local repository, with its cache."""

    name = "restic"

    def missing(self) -> str:
        if shutil.which("restic") is None:
            return "restic is not installed: make bench-peers, or apt-get install restic"
        if self._number() < RESTIC_COMPRESSION_SINCE:
            return f"{self.version()} does not compress: 0.14 is the first that does"
        return ""

    def version(self) -> str:
        return run(["restic", "version"]).checked().out.partition(" compiled")[0]

    def _number(self) -> tuple[int, ...]:
        found = re.search(r"(\d+)\.(\d+)", self.version())
        return tuple(map(int, found.groups())) if found else (0,)

    def open(self, place: Path) -> None:
        self._place = place
        run(["restic", "init", "--repository-version", "2", "--quiet"], env=self._env()).checked()

    def _env(self) -> dict[str, str]:
        return {
            "RESTIC_REPOSITORY": str(self._place / "repository"),
            "RESTIC_CACHE_DIR": str(self._place / "cache"),
            "RESTIC_PASSWORD": PASSPHRASE,
            "RESTIC_COMPRESSION": "auto",
        }

    def command(self, phase: Phase, source: Path, target: Path) -> Command:
        backup: list[str | Path] = ["restic", "backup", "--compression", "auto", "--json", "--quiet", "."]
        argv: dict[Phase, list[str | Path]] = {
            Phase.FIRST: backup,
            Phase.UNCHANGED: backup,
            Phase.RESCAN: [*backup, "--force"],
            Phase.RESTORE: ["restic", "restore", "latest", "--quiet", "--target", target],
        }
        return Command(argv[phase], self._env(), source)

    def fault(self, phase: Phase, out: str) -> str:
        if phase is Phase.RESTORE:
            return ""
        report = json.loads(out.strip().splitlines()[-1])
        unread, others = report["files_unmodified"], report["files_new"] + report["files_changed"]
        if phase is Phase.UNCHANGED and others:
            return f"it read {others} files of those that had not changed"
        return f"it left {unread} files unread" if phase is not Phase.UNCHANGED and unread else ""

    def stored_bytes(self) -> int:
        return tree_bytes(self._place / "repository")


class Borg(Peer):
    """borg 1.4, from PyPI, on a local repository, with its caches."""

    name = "borg"

    def missing(self) -> str:
        return "" if BORG.exists() else "borg 1.4 is not installed: make bench-peers"

    def version(self) -> str:
        return run([BORG, "--version"]).checked().out.strip()

    def open(self, place: Path) -> None:
        self._place = place
        place.mkdir()
        run([BORG, "init", "--encryption", "repokey-blake2"], env=self._env()).checked()

    def _env(self) -> dict[str, str]:
        return {
            "BORG_REPO": str(self._place / "repository"),
            "BORG_BASE_DIR": str(self._place / "home"),
            "BORG_PASSPHRASE": PASSPHRASE,
        }

    def command(self, phase: Phase, source: Path, target: Path) -> Command:
        create: list[str | Path] = [BORG, "create", "--compression", "zstd,1"]
        archive = f"::{phase.name.lower()}"
        argv: dict[Phase, list[str | Path]] = {
            Phase.FIRST: [*create, archive, "."],
            Phase.UNCHANGED: [*create, archive, "."],
            Phase.RESCAN: [*create, "--files-cache", "disabled", archive, "."],
            Phase.RESTORE: [BORG, "extract", f"::{Phase.FIRST.name.lower()}"],
        }
        return Command(argv[phase], self._env(), target if phase is Phase.RESTORE else source)

    def stored_bytes(self) -> int:
        return tree_bytes(self._place / "repository")


def peers() -> list[Peer]:
    """All of them, those to compare with last."""
    return [Staddle(), StaddleThin(), Restic(), Borg()]


def usable(found: list[Peer]) -> tuple[list[Peer], list[str]]:
    """Those that can run here, and why the others cannot."""
    reasons = []
    able = []
    for peer in found:
        try:
            reason = peer.missing()
        except (ProgramError, OSError) as error:
            reason = f"{peer.name} does not run: {error}"
        if reason:
            reasons.append(reason)
        else:
            able.append(peer)
    return able, reasons
