"""Concurrent calls and interrupted ones: one of two conflicting calls wins, and no change is partial."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from sqlalchemy import event
from staddle_server.base import errors
from staddle_server.base.types import UploadState
from staddle_server.catalog import ClockSeen, MissingChunk, PendingRecord, Terms, open_catalog

ROUNDS = 15
TERMS = Terms(300, 7 * 24 * 3600)


def _together(*calls):
    """Start the calls at the same moment, each in a thread, and return their results or errors."""
    barrier = threading.Barrier(len(calls))
    answers = [None] * len(calls)

    def run(n, call):
        barrier.wait()
        try:
            answers[n] = call()
        except Exception as error:  # whatever it is, the test looks at it
            answers[n] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_concurrent_resumes_get_distinct_epochs_and_only_the_last_can_write(world):
    upload = world.begin().upload
    resume = world.catalog.uploads.resume
    resumed = _together(*[lambda: resume(world.tenant, upload.id, world.ann, world.now, TERMS)] * 8)
    assert sorted(answer.epoch for answer in resumed) == list(range(2, 10))
    written = [answer for answer in resumed if _can_write(world, answer)]
    assert [answer.epoch for answer in written] == [9]


def _can_write(world, upload):
    try:
        world.checkpoint(upload)
    except errors.Conflict:
        return False
    return True


def test_of_concurrent_observations_of_the_clock_the_first_stands(world):
    before = None
    for round_ in range(ROUNDS):
        seen = [ClockSeen("boot", 1, round_, number, 0, 0) for number in range(6)]
        put = [lambda each=each, last=before: world.catalog.clock.put(each, last) for each in seen]
        assert sorted(_together(*put), key=repr) == [False] * 5 + [True]
        before = world.catalog.clock.get("boot")
        assert before in seen


def test_one_of_two_principals_that_take_an_upload_over_wins(world):
    carl = world.principal_of(world.tenant, "carl")
    for _ in range(ROUNDS):
        upload = world.begin().upload
        now = upload.lease_expires_ns
        answers = _together(
            *[
                lambda who=who, u=upload, n=now: world.catalog.uploads.resume(
                    world.tenant, u.id, who, n, TERMS
                )
                for who in (world.bob, carl)
            ]
        )
        lost = [answer for answer in answers if isinstance(answer, errors.Conflict)]
        assert [answer.reason for answer in lost] == ["LEASE_HELD"]


def test_the_same_begin_sent_many_times_at_once_opens_one_upload(world):
    answers = _together(*[lambda: world.begin(request_id="r1", take_over=True)] * 8)
    assert len({answer.upload.id for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 7


def test_either_a_commit_or_the_expiry_wins(world):
    for _ in range(ROUNDS):
        upload = world.begin().upload
        committed, expired = _together(
            lambda u=upload: world.commit(u), lambda u=upload: world.catalog.uploads.expire(u.expires_ns)
        )
        state = world.catalog.uploads.get(world.tenant, upload.id).state
        if expired:
            assert state == UploadState.EXPIRED
            assert committed.reason == "UPLOAD_CLOSED"
        else:
            assert state == UploadState.COMMITTED
            assert committed.upload == upload.id


def test_either_a_commit_or_an_abort_wins(world):
    for _ in range(ROUNDS):
        upload = world.begin().upload
        committed, aborted = _together(
            lambda u=upload: world.commit(u),
            lambda u=upload: world.catalog.uploads.abort(world.tenant, u.id, 1, world.now),
        )
        lost = [answer for answer in (committed, aborted) if isinstance(answer, errors.Precondition)]
        assert [answer.reason for answer in lost] == ["UPLOAD_CLOSED"]


def test_a_claim_during_a_commit_is_complete_or_refused(world):
    ids = world.digests(50)
    stored = world.begin().upload
    world.checkpoint(stored, world.pack(stored, ids))
    for _ in range(ROUNDS):
        upload = world.begin(world.bob).upload
        claimed, committed = _together(
            lambda u=upload: world.catalog.chunks.claim(world.tenant, u.id, 1, ids),
            lambda u=upload: world.commit(u),
        )
        assert committed.upload == upload.id
        assert (
            claimed.reason == "UPLOAD_CLOSED" if isinstance(claimed, Exception) else len(claimed.places) == 50
        )


def test_concurrent_commits_get_consecutive_numbers(world):
    uploads = [world.begin().upload for _ in range(8)]
    numbers = [answer.number for answer in _together(*[lambda u=u: world.commit(u) for u in uploads])]
    assert sorted(numbers) == list(range(1, 9))


def test_a_base_deleted_while_an_upload_begins_is_used_or_ignored(world):
    for n in range(ROUNDS):
        name = f"set-{n}"
        base = world.backup(name)
        record = PendingRecord(world.id(), world.tenant, b"r")
        _, begun = _together(
            lambda b=base, r=record: world.catalog.backups.delete(world.tenant, b.id, world.now, r),
            lambda d=name: world.begin(dataset=d),
        )
        assert begun.upload.base in {base.id, b""}


def test_reading_and_then_writing_under_load_never_fails(world):
    """A transaction that reads first and writes later waits for another writer (no BUSY_SNAPSHOT)."""
    ids = world.digests(200)
    stored = world.begin().upload
    world.checkpoint(stored, world.pack(stored, ids))
    other = open_catalog(world.url)  # a second pool, whose writers do not queue behind those of the first
    uploads = [world.begin(request_id=f"load-{n}").upload for n in range(8)]

    def work(n):
        catalog = (world.catalog, other)[n % 2]
        upload = uploads[n]
        for turn in range(12):
            catalog.chunks.claim(world.tenant, upload.id, 1, ids[turn * 10 : turn * 10 + 20])
            pack = bytes([n, turn]) * 8
            catalog.packs.begin(world.tenant, upload.id, 1, pack, world.now)
            catalog.uploads.set_failure(world.tenant, upload.id, 1, f"turn {turn}")
        return turn

    assert _together(*[lambda n=n: work(n) for n in range(8)]) == [11] * 8
    other.close()


def test_a_hundred_and_fifty_threads_are_all_served(world):
    upload = world.begin().upload
    calls = [lambda: world.catalog.uploads.get(world.tenant, upload.id).id] * 130
    calls += [lambda: world.catalog.uploads.set_failure(world.tenant, upload.id, 1, "x")] * 20
    assert _together(*calls) == [upload.id] * 130 + [True] * 20


# --- interrupted


def _fails_at_every_statement(world, call):
    """Repeat the call, failing at the first statement, then the second, … until it succeeds; count the failures."""
    before = world.rows()
    engine = world.catalog.database.engine
    for last in range(1, 100):
        left = [last]

        def fail(_connection, _cursor, statement, *_, left=left):
            if not statement.startswith("BEGIN"):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError("the process ends here")

        event.listen(engine, "before_cursor_execute", fail)
        try:
            call()
        except OSError:
            pass
        else:
            return last
        finally:
            event.remove(engine, "before_cursor_execute", fail)
        assert world.rows() == before
    raise AssertionError("it never succeeded")


@pytest.mark.parametrize(
    "what", ["begin", "take over", "checkpoint", "commit", "abort", "expire", "claim", "delete"]
)
def test_a_crash_between_any_two_statements_leaves_no_partial_change(world, what):
    base = world.backup()
    ids = world.digests(9)
    live = world.begin().upload
    world.checkpoint(live, world.pack(live, ids))
    upload = world.begin(world.bob, fingerprint="f").upload
    packs = [world.pack(upload, world.digests(3)) for _ in range(2)]
    missing = [MissingChunk(digest, 1) for digest in world.digests(3)]
    record = PendingRecord(world.id(), world.tenant, b"r")
    calls = {
        "begin": lambda: world.begin(dataset="new", request_id="r"),
        "take over": lambda: world.begin(world.bob, fingerprint="f", take_over=True, request_id="r"),
        "checkpoint": lambda: world.checkpoint(upload, *packs, missing_added=missing),
        "commit": lambda: world.commit(upload, *packs),
        "abort": lambda: world.catalog.uploads.abort(world.tenant, upload.id, 1, world.now),
        "expire": lambda: world.catalog.uploads.expire(upload.expires_ns),
        "claim": lambda: world.catalog.chunks.claim(world.tenant, upload.id, 1, ids),
        "delete": lambda: world.catalog.backups.delete(world.tenant, base.id, world.now, record),
    }
    # Chunk look-ups go straight to the driver, so this hook does not see them.
    assert _fails_at_every_statement(world, calls[what]) > (2 if what == "claim" else 3)


def test_an_answered_change_survives_a_kill_of_its_process(url):
    program = (
        "import os, sys\n"
        "from staddle_server.catalog import open_catalog\n"
        "catalog = open_catalog(sys.argv[1])\n"
        "for n in range(1000):\n"
        "    catalog.tenants.create(n.to_bytes(16, 'big'), f't{n}', n, record=b'made')\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True)
    with process:
        for line in process.stdout:
            if int(line) == 50:
                os.kill(process.pid, signal.SIGKILL)
                break
        answered = 50 + len(process.stdout.readlines())
    catalog = open_catalog(url)
    names = {tenant.name for tenant in catalog.tenants.list_all()}
    assert {f"t{n}" for n in range(answered + 1)} <= names
    catalog.close()
