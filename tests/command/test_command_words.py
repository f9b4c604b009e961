"""Names, sizes and times as the command writes and reads them."""

import datetime
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from staddle import Entry, EntryType, Progress
from staddle._base import figures
from staddle.command import text as _words
from staddle.command.options import byte_range, duration, stored_path, tag
from staddle.command.progress_line import left_s, words


@given(st.binary(max_size=40))
def test_an_escaped_name_is_printable_and_unambiguous(name: bytes) -> None:
    shown = _words.escaped(name)
    assert shown.isprintable()
    assert unescaped(shown) == name


@given(st.text(max_size=40))
def test_a_name_in_any_script_is_escaped_unambiguously(name: str) -> None:
    raw = name.encode("utf-8", "surrogatepass")
    assert unescaped(_words.escaped(raw)) == raw


def unescaped(shown: str) -> bytes:
    """An independent inverse."""
    out, at = bytearray(), 0
    while at < len(shown):
        if shown[at] != "\\":
            out += shown[at].encode()
            at += 1
            continue
        letter = shown[at + 1]
        digits = {"x": 2, "u": 4, "U": 8}.get(letter)
        if digits is None:
            out += {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}[letter]
            at += 2
            continue
        number = int(shown[at + 2 : at + 2 + digits], 16)
        out += bytes([number]) if letter == "x" else chr(number).encode()
        at += 2 + digits
    return bytes(out)


@given(st.text())
def test_a_message_is_one_printable_line(message: str) -> None:
    assert _words.one_line(message).isprintable()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (2**64, "16.0 EiB"),
    ],
)
def test_sizes_are_in_binary_units(count: int, text: str) -> None:
    assert figures.size(count) == text


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (1_795_390_966_678_972_329, "2026-11-22T23:42:46.678972329Z"),
        (10**21, None),
    ],
)
def test_times_keep_all_their_nanoseconds(time_ns: int, text: str | None) -> None:
    assert _words.rfc3339(time_ns) == text


@given(st.datetimes(timezones=st.just(datetime.UTC)))
def test_every_moment_has_a_local_time(moment: datetime.datetime) -> None:
    assert _words.local(moment)


@given(st.integers(0, 0o7777))
def test_modes_look_like_those_of_ls(mode: int) -> None:
    entry = Entry(b"x", EntryType.DIRECTORY, mode=mode)
    assert _words.mode(entry) == stat.filemode(stat.S_IFDIR | mode)


def test_an_unknown_mode_is_shown_as_question_marks() -> None:
    assert _words.mode(Entry(b"x")) == "-?????????"


def test_ids_are_long_enough_to_differ() -> None:
    assert _words.id_digits(["12345678ab", "12345678cd", "ffffffffff"]) == 9
    assert _words.id_digits(["a" * 32]) == 8
    assert _words.id_digits([]) == 8


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("30s", 30),
        ("10m", 600),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("7d", 604800),
        ("10 min", 600),
        ("1h 30 m", 5400),
        ("7 Days", 604800),
    ],
)
def test_durations_are_read(text: str, value: float) -> None:
    assert duration(text) == value


@pytest.mark.parametrize("text", ["", "10", "m", "-5s", "10M", "10 fortnights", "m 10", "1e9s", "8d"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|too long"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "value"), [(":", (0, None)), ("3:", (3, None)), (":4", (0, 4)), ("3:3", (3, 3))]
)
def test_ranges_are_read(text: str, value: tuple[int, int | None]) -> None:
    assert byte_range(text) == value


@pytest.mark.parametrize("text", ["", "3", "4:3", "-1:", "a:b", "1:2:3", f"{2**63}:", "9" * 30 + ":"])
def test_an_invalid_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="range"):
        byte_range(text)


def test_a_tag_may_hold_more_equals_signs() -> None:
    assert tag("a=b=c") == ("a", "b=c")
    assert tag("a=") == ("a", "")
    for wrong in ("a", "=b", "a=\udcff"):
        with pytest.raises(ValueError, match=r"tag|Unicode"):
            tag(wrong)


def test_a_stored_path_may_end_with_one_slash() -> None:
    assert stored_path("a/b/") == b"a/b"
    assert stored_path("z\udcff") == b"z\xff"
    assert stored_path("") == b""
    for wrong in ("/", "/a", "a//", "a/../b", "./a"):
        with pytest.raises(ValueError, match="invalid path"):
            stored_path(wrong)


# --- the progress line


def test_the_progress_line_shows_rate_remaining_time_and_new_data() -> None:
    progress = Progress(
        "send",
        path="a\x1b\udcff",
        entries_done=1200,
        bytes_done=3 << 30,
        new_bytes=1 << 30,
        reused_bytes=2 << 30,
    )
    line = words(progress, 85 * 2**20, 62.0)
    assert (
        line
        == r"send  1,200 entries  3.0 GiB at 85.0 MiB/s  1.0 GiB new, 2.0 GiB reused  1 min 02 s left  a\x1b\xff"
    )
    assert "left" not in words(progress, 0, None)


def test_the_remaining_time_follows_the_larger_completed_share() -> None:
    half = Progress("restore", entries_done=10, entries_total=100, bytes_done=50, bytes_total=100)
    assert left_s(half, None, 30.0) == pytest.approx(30.0)
    assert left_s(Progress("send", bytes_done=25), 100, 10.0) == pytest.approx(30.0)
    assert left_s(Progress("send", bytes_done=25), None, 10.0) is None
    assert left_s(half, None, 0.1) is None
    assert left_s(Progress("send", bytes_done=200), 100, 10.0) == 0.0


def test_local_times_name_their_zone() -> None:
    shown = _words.local(datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC))
    assert datetime.datetime.fromisoformat(shown).utcoffset() is not None
