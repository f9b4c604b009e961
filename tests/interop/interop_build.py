"""Builds third-party clients below .tools/: grpcurl, and those in Go, Node and Java from the protos alone.

Each is made once: a stamp holds the digest of what it was made from, and a lock keeps two runs apart.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROTOS = ROOT / "protos"
TOOLS = ROOT / ".tools"
BIN = TOOLS / "bin"

GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"
# The first is of the version that go/go.mod has.
GO_PLUGINS = (
    "google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.1",
)
# What go/go.mod, node/package.json and java/pom.xml ask for.
OLDEST = {"go": (1, 24), "node": (20, 19), "npm": (10,), "javac": (17,), "mvn": (3, 6)}
VERSION_FLAG = {"go": "version"}
# Short runs: a quick compiler, a small collector, and classes from an archive, made after the build.
JAVA_FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xlog:disable")


def missing(program: str) -> str | None:
    """Why a program cannot be used here, in words; None if it can."""
    oldest = ".".join(map(str, OLDEST[program]))
    if shutil.which(program) is None:
        return f"{program} {oldest} or newer is not on PATH"
    said = _run([program, VERSION_FLAG.get(program, "--version")])
    # Maven colours its name: the numbers of an escape sequence are no version.
    found = re.search(r"\d+(\.\d+)*", re.sub(r"\x1b\[[0-9;]*m", "", said))
    if found is None or tuple(map(int, found[0].split("."))) < OLDEST[program]:
        return f"{program} {oldest} or newer is needed, and this is {said.strip()}"
    return None


def grpcurl() -> Path:
    """The program grpcurl, at its pinned version."""
    made = BIN / "grpcurl"
    _once("grpcurl", made, _digest([], GRPCURL, _go_version()), lambda: _go_install(GRPCURL))
    return made


def go_client() -> Path:
    """The program of go/, with code generated from the protos."""
    for plugin in GO_PLUGINS:
        name = plugin.split("@")[0].rsplit("/", 1)[1]
        _once(name, BIN / name, _digest([], plugin, _go_version()), lambda plugin=plugin: _go_install(plugin))
    made = TOOLS / "interop-go" / "interop"
    sources = [*HERE.glob("go/*"), *PROTOS.rglob("*.proto")]
    _once("interop-go", made, _digest(sources, *GO_PLUGINS, _go_version()), lambda: _make_go_client(made))
    return made


def node_client() -> Path:
    """The program of node/, beside its modules and a copy of the protos."""
    made = TOOLS / "interop-node" / "main.mjs"
    sources = [*HERE.glob("node/*"), *PROTOS.rglob("*.proto")]
    versions = _run(["node", "--version"]) + _run(["npm", "--version"])
    _once("interop-node", made, _digest(sources, versions), lambda: _make_node_client(made.parent))
    return made


def java_client() -> tuple[str, ...]:
    """The command that runs the program of java/."""
    made = TOOLS / "interop-java" / "target" / "interop.jar"
    archive = made.with_name("interop.jsa")
    sources = [
        *(each for each in HERE.glob("java/**/*") if "target" not in each.parts),
        *PROTOS.rglob("*.proto"),
    ]
    versions = _run(["javac", "--version"]) + _run(["java", "--version"]) + _run(["mvn", "--version"])
    _once("interop-java", made, _digest(sources, versions), lambda: _make_java_client(made, archive))
    return ("java", *JAVA_FLAGS, f"-XX:SharedArchiveFile={archive}", "-jar", str(made))


def _make_java_client(made: Path, archive: Path) -> None:
    folder = _fresh_copy("java", made.parents[1])
    # Maven downloads nothing that it has: after the first time this needs no network.
    # Java takes the home that the system's list of users names, and not HOME: that of `nobody` does not exist.
    options = f"{os.environ.get('MAVEN_OPTS', '')} -Duser.home={Path.home()}".strip()
    _run(["mvn", "-B", "-q", "-ntp", f"-Dprotos={PROTOS}", "package"], cwd=folder, MAVEN_OPTS=options)
    # A call that fails loads most of the classes, too. Without the archive the client is slower, and the same.
    subprocess.run(
        ["java", *JAVA_FLAGS, f"-XX:ArchiveClassesAtExit={archive}", "-jar", str(made), "list", "none"],
        env={**os.environ, "STADDLE_SERVER": "127.0.0.1:1", "STADDLE_TOKEN": "none"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def _make_go_client(made: Path) -> None:
    folder = _fresh_copy("go", made.parent)
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    # buf comes with the development dependencies, beside the interpreter.
    buf = Path(sys.executable).with_name("buf")
    _run([str(buf), "generate", str(PROTOS)], cwd=folder, PATH=path)
    _run(["go", "vet", "./..."], cwd=folder)
    _run(["go", "build", "-trimpath", "-o", made.name, "."], cwd=folder)


def _make_node_client(folder: Path) -> None:
    _fresh_copy("node", folder)
    shutil.copytree(PROTOS, folder / "protos")
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder)


def _fresh_copy(language: str, folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    return Path(
        shutil.copytree(
            HERE / language, folder, ignore=shutil.ignore_patterns("node_modules", "gen", "target")
        )
    )


def _go_install(what: str) -> None:
    _run(["go", "install", "-trimpath", what], GOBIN=str(BIN))


def _go_version() -> str:
    return _run(["go", "version"])


def _once(name: str, made: Path, digest: str, make: Callable[[], None]) -> None:
    with _locked():
        stamp = TOOLS / f"{name}.stamp"
        if made.exists() and stamp.exists() and stamp.read_text() == digest:
            return
        stamp.unlink(missing_ok=True)
        make()
        stamp.write_text(digest)


@contextmanager
def _locked() -> Iterator[None]:
    BIN.mkdir(parents=True, exist_ok=True)
    with (TOOLS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(files: list[Path], *words: str) -> str:
    digest = hashlib.blake2b(repr(words).encode())
    for file in sorted(each for each in files if each.is_file()):
        digest.update(repr((str(file.relative_to(ROOT)), file.read_bytes())).encode())
    return digest.hexdigest()


def _run(command: list[str], cwd: Path = ROOT, **environment: str) -> str:
    """The output of a command; an error with its messages if it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "CGO_ENABLED": "0", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout
