"""The programs that are compared, each behind the same few questions: Staddle's two ways, restic, borg, rustic, bupstash, and `cp`.

All but `cp` compress and encrypt with authentication, each at what it is usually run with: Staddle zstd 1 and AES-256-GCM; restic and
rustic repository version 2, AES-256-CTR with Poly1305, zstd at each one's default; borg `--compression zstd,1`, `--encryption
repokey-blake2`; bupstash its default (zstd, XSalsa20 with Poly1305). Chunk sizes are each program's own. They write into a directory of
this machine directly; Staddle's client talks to a server over loopback, and the processor time and memory of both are counted. `cp`
is the limit: it keeps one copy, whole and open to all.
"""

import enum
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.programs.processes import ProgramError, Server, run, staddle, tree_bytes

TOOLS: Final = Path(__file__).parents[2] / ".tools"
BORG: Final = TOOLS / "borg" / "bin" / "borg"
RUSTIC: Final = TOOLS / "cargo" / "bin" / "rustic"
BUPSTASH: Final = TOOLS / "cargo" / "bin" / "bupstash"
PASSPHRASE: Final = "benchmark"
READ_SHARE_MIN: Final = 0.99
RESTIC_COMPRESSION_SINCE: Final = (0, 14)


class Phase(enum.StrEnum):
    """What is measured, in this order."""

    FIRST = "first backup"
    UNCHANGED = "unchanged"
    """The same data again; what looks unchanged is not read."""
    RESCAN = "rescan"
    """The same data again, and all of it is read."""
    CHANGED = "changed"
    """One per cent is other data, in many places."""
    INSERTED = "inserted"
    """A MiB more at the front of every file."""
    TEN = "ten changes"
    """Ten files are others, of however many."""
    RESTORE = "restore"
    SCATTERED = "restore 1 %"
    """One file in a hundred, from everywhere."""
    ONE = "restore one"
    """One file."""

    @property
    def reads_all(self) -> bool:
        """A backup that must not rely on one before."""
        return self in {Phase.FIRST, Phase.RESCAN}

    @property
    def restores(self) -> bool:
        """Something comes back."""
        return self in {Phase.RESTORE, Phase.SCATTERED, Phase.ONE}


BACKUPS: Final = tuple(phase for phase in Phase if not phase.restores)


class Command(NamedTuple):
    """A program to run, and where."""

    argv: list[str | Path]
    env: Mapping[str, str]
    cwd: Path


class Peer(ABC):
    """A program that makes backups, with a new repository in each round."""

    name: str
    phases: tuple[Phase, ...] = tuple(Phase)
    server: Server | None = None
    """A separate process that works for it."""

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
    def backup(self, source: Path, *, read_all: bool) -> Command:
        """Backs up the content of a directory. `read_all`: also of files that look as they did the last time."""

    @abstractmethod
    def restore(self, target: Path, paths: Sequence[str]) -> Command:
        """Restores the newest backup straight into an empty directory: those files of it, or everything."""

    def fault(self, phase: Phase, out: str) -> str:
        """How it deviated from the phase, such as reading what it should not; empty if it reported nothing."""
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
        place.mkdir()
        self.server = Server(place / "server")
        self.server.start()

    def backup(self, source: Path, *, read_all: bool) -> Command:
        kind = ("--kind", "full") if read_all else ()
        return Command(
            staddle("backup", source, "--dataset", "data", *kind, *self.options), self._env(), source
        )

    def restore(self, target: Path, paths: Sequence[str]) -> Command:
        return Command(staddle("restore", "data", "--target", target, *paths), self._env(), target)

    def _env(self) -> Mapping[str, str]:
        assert self.server is not None
        return self.server.environment

    def fault(self, phase: Phase, out: str) -> str:
        report = json.loads(out.strip().splitlines()[-1])
        if phase.restores:
            return ""
        read, all_bytes = report.get("read_bytes"), report["data_bytes"]
        if phase is Phase.UNCHANGED and read:
            return f"it read {read} bytes of what had not changed"
        # A hard link is read once, however often it counts.
        if phase.reads_all and read < all_bytes * READ_SHARE_MIN:
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
    phases = BACKUPS


class Local(Peer):
    """A program that writes a repository to a directory of this machine directly."""

    program: Path
    version_argument = "--version"

    def missing(self) -> str:
        return "" if self.program.exists() else f"{self.name} is not installed: make bench-peers"

    def version(self) -> str:
        return run([self.program, self.version_argument]).checked().out.strip()

    def open(self, place: Path) -> None:
        self._place = place
        self._number = 0
        place.mkdir()

    def stored_bytes(self) -> int:
        return tree_bytes(self._place / "repository")


class Restic(Local):
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
        super().open(place)
        run(["restic", "init", "--repository-version", "2", "--quiet"], env=self._env()).checked()

    def _env(self) -> dict[str, str]:
        return {
            "RESTIC_REPOSITORY": str(self._place / "repository"),
            "RESTIC_CACHE_DIR": str(self._place / "cache"),
            "RESTIC_PASSWORD": PASSPHRASE,
            "RESTIC_COMPRESSION": "auto",
        }

    def backup(self, source: Path, *, read_all: bool) -> Command:
        argv = ["restic", "backup", "--compression", "auto", "--json", "--quiet", "."]
        return Command([*argv, *(["--force"] if read_all else [])], self._env(), source)

    def restore(self, target: Path, paths: Sequence[str]) -> Command:
        # Its snapshot holds the directory under its whole path; the pattern may begin anywhere.
        chosen = [word for path in paths for word in ("--include", path)]
        argv = ["restic", "restore", "latest", "--quiet", "--target", str(target), *chosen]
        return Command(list(argv), self._env(), target)

    def fault(self, phase: Phase, out: str) -> str:
        if phase.restores:
            return ""
        report = json.loads(out.strip().splitlines()[-1])
        unread, others = report["files_unmodified"], report["files_new"] + report["files_changed"]
        if phase is Phase.UNCHANGED and others:
            return f"it read {others} files of those that had not changed"
        return f"it left {unread} files unread" if phase.reads_all and unread else ""


class Borg(Local):
    """borg 1.4, from PyPI, on a local repository, with its caches."""

    name = "borg"
    program = BORG

    def open(self, place: Path) -> None:
        super().open(place)
        run([BORG, "init", "--encryption", "repokey-blake2"], env=self._env()).checked()

    def _env(self) -> dict[str, str]:
        return {
            "BORG_REPO": str(self._place / "repository"),
            "BORG_BASE_DIR": str(self._place / "home"),
            "BORG_PASSPHRASE": PASSPHRASE,
        }

    def backup(self, source: Path, *, read_all: bool) -> Command:
        self._number += 1
        cache = ["--files-cache", "disabled"] if read_all and self._number > 1 else []
        argv = [BORG, "create", "--compression", "zstd,1", *cache, f"::{self._number}", "."]
        return Command(argv, self._env(), source)

    def restore(self, target: Path, paths: Sequence[str]) -> Command:
        return Command([BORG, "extract", f"::{self._number}", *paths], self._env(), target)


class Rustic(Local):
    """rustic, from crates.io, on a local repository, with its cache."""

    name = "rustic"
    program = RUSTIC

    def open(self, place: Path) -> None:
        super().open(place)
        run([RUSTIC, "init", "--no-progress"], env=self._env(), cwd=place).checked()

    def _env(self) -> dict[str, str]:
        return {
            "RUSTIC_REPOSITORY": str(self._place / "repository"),
            "RUSTIC_CACHE_DIR": str(self._place / "cache"),
            "RUSTIC_PASSWORD": PASSPHRASE,
            "HOME": str(self._place),
        }

    def backup(self, source: Path, *, read_all: bool) -> Command:
        argv: list[str | Path] = [RUSTIC, "backup", "--no-progress", "--log-level", "warn", "."]
        return Command([*argv, *(["--force"] if read_all else [])], self._env(), source)

    def restore(self, target: Path, paths: Sequence[str]) -> Command:
        chosen = [word for path in paths for word in ("--glob", path)]
        argv: list[str | Path] = [RUSTIC, "restore", "--no-progress", "--log-level", "warn", *chosen]
        return Command([*argv, "latest", target], self._env(), self._place)


class Bupstash(Local):
    """bupstash, from crates.io, on a local repository, with its send log."""

    name = "bupstash"
    program = BUPSTASH
    version_argument = "version"
    phases = (*BACKUPS, Phase.RESTORE)
    """It takes out a directory or one file, and no list of them."""

    def open(self, place: Path) -> None:
        super().open(place)
        run([BUPSTASH, "new-key", "-o", place / "key"]).checked()
        run([BUPSTASH, "init"], env=self._env()).checked()

    def _env(self) -> dict[str, str]:
        return {
            "BUPSTASH_REPOSITORY": str(self._place / "repository"),
            "BUPSTASH_KEY": str(self._place / "key"),
            "BUPSTASH_SEND_LOG": str(self._place / "send-log"),
            "BUPSTASH_QUERY_CACHE": str(self._place / "query-cache"),
            "HOME": str(self._place),
        }

    def backup(self, source: Path, *, read_all: bool) -> Command:
        self._number += 1
        # The first one must fill what the next ones go by.
        again = ["--no-stat-caching"] if read_all and self._number > 1 else []
        argv: list[str | Path] = [BUPSTASH, "put", "--quiet", *again]
        return Command([*argv, f"number={self._number}", "."], self._env(), source)

    def restore(self, target: Path, paths: Sequence[str]) -> Command:
        argv: list[str | Path] = [BUPSTASH, "restore", "--quiet", "--into", target, f"number={self._number}"]
        return Command(argv, self._env(), self._place)


class Copy(Peer):
    """`cp -a`, which keeps nothing: how fast this machine reads and writes the files themselves."""

    name = "cp"
    phases = (Phase.FIRST, Phase.RESTORE)

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return "cp -a"

    def open(self, place: Path) -> None:
        self._place = place
        place.mkdir()

    def backup(self, source: Path, *, read_all: bool) -> Command:
        self._source = source
        return Command(["cp", "-a", f"{source}/.", self._place / "copy"], {}, source)

    def restore(self, target: Path, paths: Sequence[str]) -> Command:
        return Command(["cp", "-a", f"{self._source}/.", target], {}, self._place)

    def stored_bytes(self) -> int:
        return tree_bytes(self._place)


LIMIT: Final = Copy.name
"""Not a peer: the limit that is printed beside them."""


def peers() -> list[Peer]:
    """All of them, those to compare with last."""
    return [Staddle(), StaddleThin(), Restic(), Borg(), Rustic(), Bupstash(), Copy()]


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
