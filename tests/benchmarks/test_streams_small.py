"""`make bench-wire` measures both directions beside gRPC alone, and fails if existing data is stored again."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import streams
from benchmarks.programs import bare_stream

SMALL = ["--mib", "3", "--message-kib", "256", "--work"]


pytestmark = pytest.mark.usefixtures("results")


@pytest.mark.slow
@pytest.mark.parametrize(("more", "rounds"), [(["--rounds", "2"], 2), (["--rounds", "1", "--tls"], 1)])
def test_every_stream_is_measured_in_each_round_and_written_down(
    tmp_path: Path, results: Path, more: list[str], rounds: int
) -> None:
    (tmp_path / "work").mkdir()
    assert streams.main([*SMALL, str(tmp_path / "work"), *more]) == 0
    (path,) = results.glob("wire-*.json")
    record = json.loads(path.read_text())
    assert (record["kind"], record["tls"]) == ("wire", "--tls" in more)
    assert "processor" in record["machine"]
    assert {way: len(found) for way, found in record["ways"].items()} == dict.fromkeys(streams.WORDS, rounds)
    for found in record["ways"].values():
        for each in found:
            assert each["seconds"] > 0
            assert each["message_bytes"] >= 3 << 20
            assert each["messages"] >= 3
    assert not list((tmp_path / "work").iterdir()), "it leaves nothing behind"


@pytest.mark.slow
def test_storing_existing_data_again_ends_the_run(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "NEW_SHARE_MAX", -1.0)
    with pytest.raises(SystemExit, match="stored once more"):
        streams.main([*SMALL, str(tmp_path), "--rounds", "1"])
    assert not results.exists()


def test_messages_read_back_from_a_file_and_another_file_is_refused(tmp_path: Path) -> None:
    messages = [b"", b"one", bytes(100_000)]
    bare_stream.write_messages(tmp_path / "file", messages)
    assert list(bare_stream.read_messages(tmp_path / "file")) == messages
    whole = (tmp_path / "file").read_bytes()
    for broken in (whole[:-1], whole + b"\1", b"\xff\xff\xff\xff" + bytes(10)):
        (tmp_path / "file").write_bytes(broken)
        with pytest.raises(ValueError, match="does not hold messages"):
            list(bare_stream.read_messages(tmp_path / "file"))


def taken(seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "client_cpu_s": 1.0, "server_cpu_s": 2.0, "messages": 4, "message_bytes": 9}


def some_record() -> dict[str, Any]:
    times = {"limit in": (1.0, 1.0, 9.0), "again": (2.0, 1.25, 1.0), "first": (4.0, 4.0, 4.0)}
    times |= {"limit out": (1.0, 1.0, 1.0), "restore": (2.0, 2.0, 2.0)}
    ways = {way: [taken(each) for each in found] for way, found in times.items()}
    return {"data_bytes": 1 << 30, "message_bytes": 1 << 20, "tls": False, "ways": ways}


def test_the_section_has_medians_shares_of_the_limit_and_whether_the_aim_is_met() -> None:
    lines = streams.section(some_record())
    assert "| in: data that the store has | 819 | 0.80 | 1.00 | 2.00 |" in lines
    assert "| out: restore | 512 | 0.50 | 1.00 | 2.00 |" in lines
    assert lines[-1] == "Data that the store has: 0.80 of the limit; the aim of 0.70 is met."
    slower = some_record()
    slower["ways"]["again"] = [taken(1.5)]
    assert streams.section(slower)[-1].endswith("0.67 of the limit; the aim of 0.70 is not met.")


@pytest.mark.slow
def test_the_same_figures_give_the_same_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg"):
        streams.draw(some_record(), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
