"""`make demo`: a server, two backups, a look at what changed, and a restore to a moment before the change.

It prints every command that it runs. It works on a scratch copy below ./demo-data, stops its server, and
leaves the data there, for the commands that it prints at the end.
"""

import argparse
import contextlib
import fnmatch
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from blake3 import blake3
from staddle._base.figures import counted

from staddle_server.base.limits import KIB, MIB

COPY_BYTES_MAX: Final = 1024 * MIB
READ_BYTES: Final = 1 * MIB
OUTPUT_LINES_MAX: Final = 14
SERVER_START_S: Final = 30
SERVER_STOP_S: Final = 30
DATASET: Final = "demo"
MADE_BY_MACHINES: Final = (
    ".venv*",
    "node_modules",
    ".tools",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "demo-data",
    "staddle-data",
)
"""Left out of the copy of the project: not worth a backup."""


class DemoError(Exception):
    """The demonstration failed. The message says why."""


@dataclass(frozen=True)
class Places:
    """The paths of the demonstration. `bin` holds the two commands."""

    bin: Path
    base: Path

    @property
    def server(self) -> Path:
        return self.base / "server"

    @property
    def files(self) -> Path:
        return self.base / "files"

    @property
    def restored(self) -> Path:
        return self.base / "restored"

    @property
    def cache(self) -> Path:
        return self.base / "cache"

    @property
    def client_config(self) -> Path:
        return self.server / "client.toml"


@dataclass
class Copied:
    """The content of the scratch copy, and what was left out of it."""

    files: int = 0
    data_bytes: int = 0
    too_much: int = 0
    special: int = 0
    unreadable: list[str] = field(default_factory=list)


# --- the steps


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--source", default=".", help="the directory to show it on; it is only read")
    parser.add_argument("--base", default="demo-data", help="where copy, server and restored files go")
    given = parser.parse_args(arguments)
    places = Places(Path(sys.executable).parent, Path(given.base).absolute())
    try:
        source = Path(given.source).absolute()
        if not source.is_dir():
            raise DemoError(f"SOURCE={given.source} is not a directory")
        _run(places, source)
    except DemoError as error:
        say(f"\nThe demonstration failed: {error}", error=True)
        return 1
    return 0


def _run(places: Places, source: Path) -> None:
    _clear(places)
    _tell_copied(copy_tree(source, places.files, left_out=_left_out(source, places)), source, places)
    with _server(places):
        heading("First backup")
        staddle(places, "backup", _short(places.files), "--dataset", DATASET)
        before = digests(places.files)
        between = datetime.now(UTC)
        time.sleep(0.01)  # the second backup begins later than `between`, whatever the clock's step

        heading("Something happens to the files")
        changes = change_something(places.files)
        for change in changes:
            say(f"  {change}")
        heading("Second backup: only what changed is read and sent")
        staddle(places, "backup", _short(places.files), "--dataset", DATASET)

        heading("The backups, and what changed")
        staddle(places, "list", DATASET)
        staddle(places, "diff", DATASET)

        heading("Back to the moment between the two")
        at = between.isoformat(timespec="microseconds").replace("+00:00", "Z")
        staddle(places, "restore", DATASET, "--target", _short(places.restored), "--at", at)
        _compare(before, digests(places.restored))
    _tell_the_end(places, len(before), changes, at)


def _clear(places: Places) -> None:
    """Remove the data of an earlier run, and nothing else."""
    if (
        places.base.exists()
        and not (places.base / "made-by-make-demo").is_file()
        and any(places.base.iterdir())
    ):
        raise DemoError(f"{places.base} exists and is not from a demonstration: move it away")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(places.base)
    places.base.mkdir(parents=True)
    (places.base / "made-by-make-demo").write_text("The next `make demo` replaces this directory.\n")


def _left_out(source: Path, places: Places) -> tuple[str, ...]:
    """Return name patterns to leave out: build products, if the source is this project; always the scratch
    directory.
    """
    own_project = (source / "protos" / "staddle").is_dir()
    inside = places.base.is_relative_to(source)
    return (MADE_BY_MACHINES if own_project else ()) + ((places.base.name,) if inside else ())


def _tell_copied(copied: Copied, source: Path, places: Places) -> None:
    heading("A scratch copy, so that your files are only read")
    say(f"  {source} -> {_short(places.files)}: {counted(copied.files, 'file')}, {_size(copied.data_bytes)}")
    if copied.too_much:
        say(
            f"  {counted(copied.too_much, 'file was', 'files were')} left out: the demonstration is limited to 1 GiB (the service is not)."
        )
    if copied.special:
        say(
            f"  {counted(copied.special, 'device, socket or fifo was', 'devices, sockets or fifos were')} left out of the copy."
        )
    if copied.unreadable:
        say(f"  {len(copied.unreadable)} could not be read, such as {copied.unreadable[0]!r}.")


def _size(data_bytes: int) -> str:
    return f"{data_bytes / MIB:.1f} MiB" if data_bytes >= MIB else f"{data_bytes / KIB:.1f} KiB"


def _compare(before: dict[bytes, str], restored: dict[bytes, str]) -> None:
    wrong = sorted(path for path in before.keys() | restored.keys() if before.get(path) != restored.get(path))
    if wrong:
        raise DemoError(f"{counted(len(wrong), 'path')} came back different, such as {wrong[0]!r}")
    say(f"  Compared {counted(len(before), 'path')}: everything is as before the change, byte for byte.")


def _tell_the_end(places: Places, paths: int, changes: list[str], at: str) -> None:
    server, config = shlex.quote(_short(places.server)), shlex.quote(str(places.client_config))
    again = shlex.quote(_short(places.base / "restored-again"))
    log = shlex.quote(_short(places.base / "server.log"))
    heading("What happened")
    say(
        f"  A server stored two backups of {counted(paths, 'path')} (files, directories, links). Between them {counted(len(changes), 'thing')} changed, and with"
    )
    say(
        "  them the times of their directories (m); only those were sent. Then everything was restored to its earlier"
    )
    say(f"  state, and compared. The server has stopped; its data is in {_short(places.server)}.")
    heading("To continue: stay in this directory, and paste these")
    port = _free_port()
    for line in (
        f"export PATH={shlex.quote(str(places.bin))}:$PATH",
        # Its log would mix with the output of the other commands.
        f"staddle-server serve --data {server} --listen 127.0.0.1:0 --http 127.0.0.1:{port} > {log} 2>&1 &",
        f"staddle-server health --data {server} --wait 30s",
        f"export STADDLE_CONFIG={config}",
        f"staddle list {DATASET}",
        f"staddle ls {DATASET}",
        f"staddle restore {DATASET} --target {again} --at {at}",
    ):
        say(f"  {line}")
    heading("Then look at the dashboard, which that server has, too")
    say(f"  http://127.0.0.1:{port}/")
    say(f"  Log in with this token: {_token(places)}")
    say("  `kill %1` stops the server.")
    say(
        "\n  Your own data: README.md continues from here, with `make serve` and `staddle backup PATH --dataset NAME`."
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _token(places: Places) -> str:
    token: str = tomllib.loads(places.client_config.read_text())["token"]
    return token


# --- the scratch copy


def copy_tree(
    source: Path, target: Path, left_out: tuple[str, ...] = (), bytes_max: int = COPY_BYTES_MAX
) -> Copied:
    """Copy directories, regular files and symbolic links, in order of directory name, until `bytes_max` is
    reached.

    Never writes to the source, never follows a link. What is left out is counted.
    """
    copied = Copied()
    target.mkdir(parents=True)
    pending = [(os.fsencode(source), os.fsencode(target))]
    patterns = [os.fsencode(pattern) for pattern in left_out]
    while pending:
        here, there = pending.pop()
        for entry in _listed(here, copied):
            if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns):
                continue
            destination = os.path.join(there, entry.name)
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(destination)
                pending.append((entry.path, destination))
            else:
                _copy_one(entry, destination, copied, bytes_max)
    return copied


def _listed(path: bytes, copied: Copied) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        copied.unreadable.append(os.fsdecode(path))
        return []


def _copy_one(entry: os.DirEntry[bytes], destination: bytes, copied: Copied, bytes_max: int) -> None:
    size = entry.stat(follow_symlinks=False).st_size
    if not entry.is_symlink() and not entry.is_file():
        copied.special += 1
    elif copied.data_bytes + size > bytes_max:
        copied.too_much += 1
    else:
        try:
            shutil.copy2(entry.path, destination, follow_symlinks=False)
        except OSError:
            copied.unreadable.append(os.fsdecode(entry.path))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(destination)
            return
        copied.files += 1
        copied.data_bytes += size


def change_something(root: Path) -> list[str]:
    """Change a file, remove one and create one, if they exist. Return what it did, in words."""
    every = sorted(path for path in root.rglob("*") if stat.S_ISREG(path.lstat().st_mode))
    files = [path for path in every if not _inside(path, root).startswith(".")] or every
    done = []
    if files:
        changed = max(files, key=lambda path: path.stat().st_size)
        changed.chmod(changed.stat().st_mode | stat.S_IWUSR)
        with changed.open("ab") as file:
            file.write(b"\nOne more line, written by the demonstration.\n")
        done.append(f"changed  {_inside(changed, root)}")
    if len(files) > 1:
        removed = next(path for path in files if path != changed)
        removed.unlink()
        done.append(f"removed  {_inside(removed, root)}")
    made = root / "made-by-the-demonstration.txt"
    made.write_text("This file was not there at the first backup.\n")
    done.append(f"made     {_inside(made, root)}")
    return done


def _inside(path: Path, root: Path) -> str:
    """Return a path relative to the root, safe for a terminal."""
    return ascii(str(path.relative_to(root))).strip("'")


def digests(root: Path) -> dict[bytes, str]:
    """Return every path below the root with its state: type and mode, and the digest or the link target."""
    found = {}
    top = os.fsencode(root)
    for here, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(here, name)
            status = os.lstat(path)
            found[os.path.relpath(path, top)] = f"{status.st_mode:o} {_substance(path, status.st_mode)}"
    return found


def _substance(path: bytes, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return ascii(os.readlink(path))
    if not stat.S_ISREG(mode):
        return ""
    hasher = blake3()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


# --- the commands


@contextlib.contextmanager
def _server(places: Places) -> Iterator[None]:
    """Run a server on a free port, and stop it in any case."""
    heading("A server of our own")
    command = ["staddle-server", "serve", "--data", _short(places.server), "--listen", "127.0.0.1:0"]
    say(f"  $ {shlex.join(command)} &")
    log_path = places.base / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  our own two commands, no shell
            [str(places.bin / command[0]), *command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            _await_server(places, process, log_path)
            say(f"  $ export STADDLE_CONFIG={shlex.quote(str(places.client_config))}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(SERVER_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_server(places: Places, process: subprocess.Popen[bytes], log_path: Path) -> None:
    health = [str(places.bin / "staddle-server"), "health", "--data", str(places.server)]
    deadline_s = time.monotonic() + SERVER_START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        if places.client_config.exists() and _succeeds(health):
            return
        time.sleep(0.05)
    raise DemoError(f"the server did not start:\n{log_path.read_text(errors='replace')[-2000:]}")


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603  our own command


def staddle(places: Places, *arguments: str) -> None:
    """Print a command, run it, and print its output. Raises DemoError unless it exits 0."""
    say(f"  $ {shlex.join(('staddle', *arguments))}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STADDLE_")}
    environment["STADDLE_CONFIG"] = str(places.client_config)
    environment["STADDLE_CACHE_DIR"] = str(places.cache)
    done = subprocess.run(  # noqa: S603  our own two commands, no shell
        [str(places.bin / "staddle"), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    _show(done.stdout.decode(errors="replace").splitlines(), failed=done.returncode != 0)
    if done.returncode != 0:
        raise DemoError(f"`staddle {arguments[0]}` ended with exit code {done.returncode}")


def _show(lines: list[str], *, failed: bool) -> None:
    """Print the beginning of a command's output; if it failed the end, which says why."""
    shown = lines[-OUTPUT_LINES_MAX:] if failed else lines[:OUTPUT_LINES_MAX]
    for line in shown:
        say(f"    {line}")
    if len(lines) > len(shown):
        say(f"    … {counted(len(lines) - len(shown), 'more line')}")


# --- words


def heading(text: str) -> None:
    say(f"\n{text}")


def say(text: str, *, error: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def _short(path: Path) -> str:
    """Return the path relative to the current directory, if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


if __name__ == "__main__":
    sys.exit(main())
