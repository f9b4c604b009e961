"""Which stage of the work a sampled stack belongs to: the table of patterns, and nothing else.

A frame is a line of text, `FILE FUNCTION: SOURCE LINE`. The innermost frame that a pattern knows decides, and of the patterns the
first: a call of `blake3` is hashing wherever it stands, and what a frame of the standard library does is its caller's.
"""

import re
from collections.abc import Sequence
from typing import Final

START: Final = "start"
WALK: Final = "walk, list"
READ: Final = "read"
CUT: Final = "cut"
HASH: Final = "hash"
CATALOG: Final = "look up, catalog"
COMPRESS: Final = "compress"
INFLATE: Final = "inflate"
SEAL: Final = "seal, open"
GRPC: Final = "gRPC"
PROTOBUF: Final = "protobuf, conversion"
WRITE: Final = "write, sync"
MANIFEST: Final = "manifest, entries"
THREADS: Final = "threads: wait, wake"
OTHER: Final = "other Python"
UNSEEN: Final = "not seen"
"""Threads that used the processor and were in no sample."""

STAGES: Final = (
    START, WALK, READ, CUT, HASH, CATALOG, COMPRESS, INFLATE, SEAL, GRPC, PROTOBUF, WRITE, MANIFEST, THREADS, OTHER, UNSEEN,
)  # fmt: skip

LIMITS: Final = {
    WALK: "list",
    READ: "read",
    CUT: "cut",
    HASH: "hash",
    COMPRESS: "compress",
    INFLATE: "inflate",
    SEAL: "seal",
}
"""What benchmarks/programs/library_speed.py calls the same work alone."""

_PATTERNS: Final = tuple(
    (stage, re.compile(pattern))
    for stage, pattern in (
        # what a line calls, wherever it stands
        (HASH, r": .*\b(blake3|_hasher\.\w+|hasher\.\w+)\("),
        (INFLATE, r": .*\bdecompress\w*\("),
        (COMPRESS, r": .*(\bcompress\w*\(|\bcompressor\b)"),
        (SEAL, r": .*\b(encrypt\w*|decrypt\w*|encryptor\.\w+|decryptor\.\w+|AESGCM)\("),
        (CUT, r": .*\bcut_buf\("),
        (PROTOBUF, r": .*\b(SerializeToString|FromString|ParseFromString|MergeFrom|CopyFrom|transformer)\("),
        (PROTOBUF, r": .*\b(pb|sv|wire|resources|service)\.[A-Z]\w+\("),
        (THREADS, r": .*\b(acquire|_release_save|_acquire_restore|notify|notify_all|_lock\.__enter__|_lock\.__exit__)\("),
        (THREADS, r": with self\._(lock|mutex|cond|turn)\b"),
        # the library of threads, as far as it does not run somebody's work
        (THREADS, r"^(\S*/)?(threading|queue)\.py (Thread\.(start|join|_delete)|Condition|Event|Semaphore|Queue|Timer)"),
        (THREADS, r"^(\S*/)?concurrent/futures/"),
        # the rooms of the server
        (CATALOG, r"staddle_server/catalog/|/sqlalchemy/|sqlite3/"),
        (READ, r"staddle_server/store/files\.py .*\bos\.(pread|read|open)\b"),
        (WRITE, r"staddle_server/store/(backends/directory|files)\.py |staddle_server/upload/publisher\.py "),
        (SEAL, r"staddle_server/store/(keys|packform)\.py "),
        (MANIFEST, r"staddle_server/(manifest/|upload/(intake|received|accepted|finish|base_backup|progress)\.py )"),
        (MANIFEST, r"staddle_server/tenancy/(chunk_writer|losses)\.py "),
        (PROTOBUF, r"staddle_server/api/(convert|messages|encoding)\.py "),
        # the client
        (WALK, r"staddle/(_fs/(walk|excludes|metadata)|_backup/(comparison|changes))\.py "),
        (READ, r"staddle/_fs/file_reader\.py "),
        (CUT, r"staddle/chunking\.py "),
        (WRITE, r"staddle/_restore/(temporary_file|target_directory|set_metadata)\.py "),
        (PROTOBUF, r"staddle/_protocol/convert\.py |/google/protobuf/"),
        (MANIFEST, r"staddle/_backup/(entries|chunk_list)\.py "),
        (GRPC, r"/grpc(_\w+)?/"),
        (START, r"<frozen importlib"),
    )
)  # fmt: skip

_WAITS: Final = re.compile(
    r": .*(\b(acquire|wait|poll|next_event|next_call_event|operate|start_server_batch)|_lock\.__enter__|queue\.get|\.result)\("
    r"|: with self\._(lock|mutex|cond|turn)\b"
)
"""Lines that wait, if only to get the interpreter back after they released it."""

_NATIVE: Final = re.compile(r"event_engine|grpc|lifeguard|resolver|default-exec|timer")
"""Names of the threads of gRPC's core, which run no Python. Linux keeps 15 characters of a name."""


def stage_of(frames: Sequence[str]) -> str:
    """The stage of a stack; the outermost frame comes first."""
    for frame in reversed(frames):
        for stage, pattern in _PATTERNS:
            if pattern.search(frame):
                return stage
    return OTHER


def waits(frame: str) -> bool:
    """Whether a frame, the innermost of its stack, is one that waits for another thread, a lock or a message."""
    return _WAITS.search(frame) is not None


def stage_of_thread(name: str) -> str:
    """The stage of a thread that was in no sample, by its name in the system."""
    return GRPC if _NATIVE.search(name) else UNSEEN
