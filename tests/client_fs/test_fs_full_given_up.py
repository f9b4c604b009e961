"""A full backup with a cache that gives its upload up, and what a differential leaves in the cache for it."""

from __future__ import annotations

import time

import pytest
from blake3 import blake3
from fs_trees import plant
from lost_packs import mark
from staddle._backup import send_missing
from staddle._errors import ConnectError
from staddle_server.base.types import Role
from staddle_server.upload import received

PRECIOUS = b"precious"


def a_while_later() -> dict[str, object]:
    """An option: nothing in the source is too recent to rely on."""
    late_ns = time.time_ns() + 3_600 * 10**9
    return {"clock": lambda: late_ns}


def test_metadata_that_a_differential_kept_is_mended_by_the_next_full_backup(protected, running) -> None:
    plant(protected.source, files=12)
    file = protected.source / "f"
    file.write_bytes(PRECIOUS)
    file.chmod(0o644)
    options = a_while_later()
    protected.backup(kind="full", **options)
    mark(running, Role.DATA, blake3(PRECIOUS).digest())
    file.chmod(0o600)
    assert protected.backup(kind="differential", **options).backup.changes.metadata_kept == 1
    made = protected.backup(kind="full", **options)
    without = protected.backup(kind="full", cache_dir=None, **options)
    assert made.backup.manifest_digest == without.backup.manifest_digest


@pytest.mark.parametrize("interrupted", [True, False])
def test_what_an_earlier_run_sent_is_compared_again_though_this_run_has_sent_something_before(
    interrupted: bool, protected, running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(received, "CHECKPOINT_ENTRIES", 1)
    monkeypatch.setattr(send_missing, "ENTRIES_MAX", 4)
    plant(protected.source, files=12)
    (protected.source / "a0").write_bytes(b"old content")
    (protected.source / "zz").write_bytes(PRECIOUS)
    options = a_while_later()
    protected.backup(kind="full", **options)
    real = protected.client._calls.call
    puts, commits, taken_over = [], [], []

    def interrupt(method, request, **more):
        puts.append(method) if method == "PutEntries" else None
        if len(puts) > 3:
            raise KeyboardInterrupt
        return real(method, request, **more)

    if interrupted:  # a whole upload, of a run without a cache
        monkeypatch.setattr(protected.client._calls, "call", interrupt)
        with pytest.raises(KeyboardInterrupt):
            protected.backup(kind="full", cache_dir=None, **options)
    (protected.source / "a0").write_bytes(b"new content, and longer")

    def fail(method, request, **more):
        if method == "CommitUpload":
            commits.append(method)
            if len(commits) == 1:
                raise ConnectError("the connection broke")
            if len(commits) == 2:
                mark(running, Role.DATA, blake3(PRECIOUS).digest())
        answer = real(method, request, **more)
        if method == "BeginUpload":
            taken_over.append(answer.taken_over)
        return answer

    monkeypatch.setattr(protected.client._calls, "call", fail)
    made = protected.backup(kind="full", **options)
    assert taken_over == [False, interrupted], "the upload that relied on damaged data was given up"
    assert protected.client.read("data", "a0") == b"new content, and longer"
    assert made.reused_bytes <= made.backup.data_bytes
