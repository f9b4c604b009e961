"""The machine that measures: what it is, and how it is brought into the same state before each measurement."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from staddle._base.interpreter import interpreter

GIB: Final = 1024**3
LIBRARIES: Final = ("staddle", "grpcio", "protobuf", "pyfastcdc", "blake3", "zstandard", "cryptography")
EXT4: Final = Path("/sys/fs/ext4")
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
LEFT_ALONE_BYTES: Final = 2 * GIB
TOUCHED_BYTES_MAX: Final = 8 * GIB
TOUCH: Final = "import mmap, sys; m = mmap.mmap(-1, int(sys.argv[1])); [m.__setitem__(at, 1) for at in range(0, len(m), 4096)]"


def memory(name: str) -> int:
    """A line of /proc/meminfo, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def describe(place: Path) -> dict[str, str]:
    """Processor, memory, disk and versions, in words."""
    return {
        "processor": f"{len(os.sched_getaffinity(0))} cores, {_processor()}",
        "memory": f"{memory('MemTotal') / GIB:.1f} GiB",
        "file system": f"{_file_system(place)}, {_free_bytes(place) / GIB:.0f} GiB free",
        "system": f"{platform.system()} {platform.release()}, {interpreter()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }


def touch_free_memory(wanted_bytes: int = TOUCHED_BYTES_MAX) -> int:
    """Uses so much free memory once, and answers how much: in a virtual machine the first use of a page may be slow."""
    size = min(wanted_bytes, memory("MemFree") - LEFT_ALONE_BYTES)
    if size <= 0:
        return 0
    subprocess.run([sys.executable, "-S", "-c", TOUCH, str(size)], check=True)
    return size


def loopback_bytes() -> int:
    """What has gone over the loopback device since the start, heads and acknowledgements included."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        device, _, fields = line.partition(":")
        if device.strip() == "lo":
            return int(fields.split()[0])
    return 0


def can_drop_caches() -> bool:
    """Whether this process may empty the system's file cache."""
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """Empties the system's file cache."""
    os.sync()
    DROP_CACHES.write_text("3")


def read_once(root: Path) -> None:
    """Reads every file, so that what follows finds them in memory."""
    for directory, _, names in os.walk(root):
        for name in names:
            path = f"{directory}/{name}"
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb", buffering=0) as file:
                    while file.read(GIB >> 8):
                        pass


def remembers_removed_files(place: Path) -> bool:
    """Whether making files is slow for a minute after many were removed: ext4 without a journal looks at each inode that was freed."""
    device, kind = _mounted(place)
    task = EXT4 / Path(device).resolve().name / "journal_task"
    return kind == "ext4" and not (task.exists() and task.read_text().strip().isdecimal())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(place: Path) -> str:
    """The file system that a path lies on, in words."""
    _, kind = _mounted(place)
    return f"{kind}, without a journal" if remembers_removed_files(place) else kind


def _mounted(place: Path) -> tuple[str, str]:
    """Device and type of the file system that a path lies on."""
    best, found = "", ("unknown", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, mounted, kind, *_ = line.split()
        if str(place).startswith(mounted.rstrip("/") + "/") and len(mounted) >= len(best):
            best, found = mounted, (device, kind)
    return found


def _free_bytes(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize
