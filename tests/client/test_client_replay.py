"""Data is kept until it is durable, and sent again after a break; and when a call is retried."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_service import CHUNK, TOKEN
from staddle import ConnectError, ExhaustedError, NotFoundError, UnavailableError
from staddle._transport.retry import NO_RETRY, Attempts, Retry, RetryNotice, may_pass, retrying
from staddle._transport.servers import Servers
from staddle._transport.settings import Settings
from staddle._upload.resend_buffer import Outcome, Replay, SentPart
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

FIRST = sv.BackupPart(continue_upload=sv.ContinueUpload(upload_id="u"))
FINISH = sv.BackupPart(finish=sv.Finish())

files = st.lists(
    st.one_of(
        st.binary(max_size=20).map(lambda data: [data]),
        st.lists(st.binary(min_size=1, max_size=3 * CHUNK // 2), max_size=4).map(
            lambda pieces: [None, *pieces]
        ),
    ),
    max_size=5,
)


def records_of(described: list[list[bytes | None]]) -> list[SentPart]:
    """Each file as its records: [data] is inline, [None, piece, …] comes in pieces."""
    records: list[SentPart] = []
    for number, (inline, *pieces) in enumerate(described):
        position, entry = number + 1, pb.Entry(path=f"{number}")
        if inline is not None:
            entry.data = inline
            records.append(SentPart(position, sv.BackupPart(entry=entry)))
            continue
        records.append(SentPart(position, sv.BackupPart(entry=entry), begins_file=True))
        offset = 0
        for piece in pieces:
            records.append(SentPart(position, sv.BackupPart(data=sv.Data(data=piece)), offset))
            offset += len(piece)
        records.append(SentPart(position, sv.BackupPart(entry_end=sv.EntryEnd(size_bytes=offset))))
    return records


class Receiver:
    """The server's side of a stream: the received data, and the open file."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.position = 0
        self.opened: tuple[str, bytes] | None = None

    def take(self, part: sv.BackupPart) -> None:
        kind = part.WhichOneof("part")
        if kind == "entry" and part.entry.HasField("data"):
            self.files[part.entry.path] = part.entry.data
            self.position += 1
        elif kind == "entry":
            if part.entry.HasField("continue_at_bytes"):
                assert self.opened is not None
                assert (part.entry.path, part.entry.continue_at_bytes) == (
                    self.opened[0],
                    len(self.opened[1]),
                )
            else:
                self.opened = (part.entry.path, b"")
        elif kind == "data":
            assert self.opened is not None
            self.opened = (self.opened[0], self.opened[1] + part.data.data)
        elif kind == "entry_end":
            assert self.opened is not None
            path, data = self.opened
            assert part.entry_end.size_bytes == len(data)
            self.files[path] = data
            self.opened = None
            self.position += 1

    def make_durable(self) -> pb.DurablePoint:
        """Keeps only whole chunks of the open file, as a server does."""
        point = pb.DurablePoint(position=self.position)
        if self.opened is not None:
            path, data = self.opened
            self.opened = (path, data[: len(data) // CHUNK * CHUNK])
            point.open_entry.path = path
            point.open_offset_bytes = len(self.opened[1])
        return point


@settings(max_examples=60, deadline=None)
@given(described=files, chance=st.randoms(use_true_random=False))
def test_every_file_arrives_complete_wherever_streams_break(described, chance) -> None:
    replay = Replay(linger_s=0)
    receiver = Receiver()
    messages = replay.restart(FIRST, pb.DurablePoint())
    for record in records_of(described):
        assert replay.append(record) is Outcome.TAKEN
    last = SentPart(len(described) + 1, FINISH)
    assert replay.append(last) is Outcome.TAKEN
    for _ in range(5):
        parts = [part for message in messages for part in message.parts]
        assert parts[0] == FIRST
        for part in parts[1 : 1 + chance.randrange(len(parts))]:
            receiver.take(part)
        durable = receiver.make_durable()
        if chance.random() < 0.5:
            replay.trim(durable)
        messages = replay.restart(FIRST, durable)
    for message in messages:
        for part in message.parts:
            receiver.take(part)
    expected = {
        f"{number}": inline if inline is not None else b"".join(pieces)
        for number, (inline, *pieces) in enumerate(described)
    }
    assert receiver.files == expected


def test_a_full_replay_buffer_blocks_until_data_is_durable() -> None:
    replay = Replay(bytes_max=1000, linger_s=0)
    replay.restart(FIRST, pb.DurablePoint())
    big = SentPart(1, sv.BackupPart(entry=pb.Entry(path="a", data=bytes(2000))))
    assert replay.append(big) is Outcome.TAKEN
    assert replay.append(big) is Outcome.FULL
    replay.trim(pb.DurablePoint(position=1))
    assert replay.held_bytes == 0
    assert replay.append(big) is Outcome.TAKEN


def test_an_ended_stream_neither_accepts_nor_sends_data() -> None:
    replay = Replay(linger_s=0)
    record = SentPart(1, sv.BackupPart(entry=pb.Entry(path="a", data=b"1")))
    assert replay.append(record) is Outcome.ENDED
    old = replay.restart(FIRST, pb.DurablePoint())
    assert replay.append(record) is Outcome.TAKEN
    new = replay.restart(FIRST, pb.DurablePoint())
    replay.stop(generation=1)
    assert replay.append(SentPart(2, FINISH)) is Outcome.TAKEN, (
        "a late report about the first stream changes nothing"
    )
    assert [len(message.parts) for message in old] == [1]
    assert sum(len(message.parts) for message in new) == 3
    replay.stop()
    assert replay.append(record) is Outcome.ENDED


def test_an_open_file_of_another_path_is_not_resumed() -> None:
    replay = Replay(linger_s=0)
    durable = pb.DurablePoint(open_entry=pb.Entry(path="stale"), open_offset_bytes=3)
    replay.restart(FIRST, pb.DurablePoint())
    for record in records_of([[None, b"abcdef"]]):
        replay.append(record)
    replay.append(SentPart(2, FINISH))
    parts = [part for message in replay.restart(FIRST, durable) for part in message.parts]
    assert not parts[1].entry.HasField("continue_at_bytes")
    assert parts[2].data.data == b"abcdef"


def test_a_resumed_file_states_no_digest_of_its_content() -> None:
    replay = Replay(linger_s=0)
    replay.restart(FIRST, pb.DurablePoint())
    records = records_of([[None, b"abcdef"]])
    records[0].part.entry.file_digest.blake3 = b"d" * 32
    for record in [*records, SentPart(2, FINISH)]:
        replay.append(record)
    durable = pb.DurablePoint(open_entry=pb.Entry(path="0"), open_offset_bytes=2)
    parts = [part for message in replay.restart(FIRST, durable) for part in message.parts]
    assert parts[1].entry.continue_at_bytes == 2
    assert not parts[1].entry.HasField("file_digest")
    assert parts[2].data.data == b"cdef"


# ---------------------------------------------------------------- retries


class FakeClock:
    def __init__(self) -> None:
        self.time_s = 1000.0
        self.slept: list[float] = []

    def now_s(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time_s += seconds


def test_waits_double_with_jitter_up_to_a_limit_and_follow_the_server() -> None:
    retry = Retry(budget_s=60, first_wait_s=1, wait_s_max=5, chance=lambda: 1.0)
    assert [retry.wait_s(tries, None) for tries in (1, 2, 3, 4, 500)] == [1, 2, 4, 5, 5]
    assert retry.wait_s(1, 30) == 30
    low = Retry(budget_s=60, first_wait_s=1, wait_s_max=5, chance=lambda: 0.0)
    assert low.wait_s(2, None) == 1


def attempts_with(retry: Retry, clock: FakeClock) -> Attempts:
    return Attempts(retry, clock, Servers(Settings("localhost", TOKEN)))


def test_retries_end_with_the_budget_and_the_last_error_counts_them() -> None:
    clock = FakeClock()
    notices: list[RetryNotice] = []
    errors = [UnavailableError(f"{number}") for number in range(100)]
    tried = iter(errors)

    def work() -> None:
        raise next(tried)

    retry = Retry(budget_s=10, first_wait_s=1, wait_s_max=4, chance=lambda: 1.0, notify=notices.append)
    with pytest.raises(UnavailableError) as caught:
        retrying(work, attempts=attempts_with(retry, clock))
    assert clock.slept == [1, 2, 4]
    assert caught.value is errors[3]
    assert caught.value.__notes__ == ["Given up after 4 tries in 7 s."]
    assert [notice.tries for notice in notices] == [1, 2, 3]
    assert [notice.left_s for notice in notices] == [10, 9, 7]


def test_progress_renews_the_budget() -> None:
    clock = FakeClock()
    attempts = attempts_with(Retry(budget_s=5, first_wait_s=4, chance=lambda: 1.0), clock)
    attempts.wait_after(UnavailableError("1"))
    attempts.progressed()
    clock.time_s += 1000
    attempts.wait_after(UnavailableError("2"))
    with pytest.raises(UnavailableError, match="3"):
        attempts.wait_after(UnavailableError("3"))


def test_a_permanent_error_is_raised_immediately() -> None:
    clock = FakeClock()

    def work() -> None:
        raise NotFoundError("never")

    with pytest.raises(NotFoundError):
        retrying(work, attempts=attempts_with(Retry(), clock))
    with pytest.raises(UnavailableError):
        attempts_with(NO_RETRY, clock).wait_after(UnavailableError("once"))
    assert clock.slept == []


def test_only_temporary_errors_are_retried() -> None:
    assert may_pass(ConnectError("nobody"))
    assert may_pass(ExhaustedError("busy", retry_after_s=1))
    assert not may_pass(ExhaustedError("full", reason="STORE_FULL"))
    assert not may_pass(NotFoundError("no"))
