"""promtool of Debian's package `prometheus`, unpacked below .tools/: it is installed nowhere, and starts nothing."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / ".tools"
PROGRAM = TOOLS / "prometheus" / "usr" / "bin" / "promtool"


def promtool() -> Path:
    """The program: that on PATH, or else one that is downloaded once. Skips where there is neither; CI fails."""
    if found := shutil.which("promtool"):
        return Path(found)
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "prometheus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not PROGRAM.exists() and (why := _unpack()):
            if os.environ.get("STADDLE_TEST_REQUIRE") == "all":
                pytest.fail(why)
            pytest.skip(why)
    return PROGRAM


def _unpack() -> str:
    """Why the package could not be unpacked; "" if it was."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "promtool is not on PATH, and this is not Debian, which has a package of it"
    with tempfile.TemporaryDirectory(dir=TOOLS) as place:
        done = subprocess.run(
            ["apt-get", "download", "-qq", "prometheus"],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        packages = list(Path(place).glob("*.deb"))
        if not packages:
            return (
                f"promtool is not on PATH, and its package cannot be downloaded: {done.stderr.strip()[-300:]}"
            )
        made = Path(place) / "made"
        subprocess.run(["dpkg-deb", "--extract", packages[0], made], check=True)
        shutil.rmtree(PROGRAM.parents[2], ignore_errors=True)
        made.rename(PROGRAM.parents[2])
    return ""


def run(*words: object, text: str = "") -> str:
    """What promtool says; fails with it if it finds anything wrong."""
    done = subprocess.run(
        [promtool(), *map(str, words)], input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
