"""Logs: one line per event, readable by machines and people, without credentials."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
from staddle_server.app.addresses import Address
from staddle_server.base import logs

TOKEN = "staddle_" + "aB3-_" * 8 + "xyz"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level, handlers = root.level, logging.getLogger(logs.LOGGER).level, list(root.handlers)
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(before)
    logging.getLogger(logs.LOGGER).setLevel(level)
    logging.captureWarnings(capture=False)


def test_a_call_is_one_json_line_with_its_fields(stream: io.StringIO) -> None:
    logs.setup("json", "info", stream)
    fields = {
        "method": "Backup",
        "tenant": "default",
        "bytes": 7,
        "seconds": 0.25,
        "outcome": "OK",
        "reason": None,
    }
    logging.getLogger(logs.CALLS).info("call", extra={"fields": fields})
    line = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert (
        line.items()
        >= {**fields, "level": "info", "logger": "staddle_server.calls", "message": "call"}.items()
    )
    assert line["time"].endswith("Z")


def test_numbers_are_numbers_in_json_even_in_lists(stream: io.StringIO) -> None:
    logs.setup("json", "info", stream)
    fields = {
        "free_bytes": [7, 8],
        "free_inodes": (None, 9),
        "share": 0.5,
        "full": False,
        "names": ["a\n", 3],
    }
    logging.getLogger(logs.CALLS).info(
        "call", extra={"fields": {**fields, "rate": float("inf"), "address": Address("::1", 7443)}}
    )
    line = json.loads(stream.getvalue(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert {key: line[key] for key in fields} == {
        "free_bytes": [7, 8],
        "free_inodes": [None, 9],
        "share": 0.5,
        "full": False,
        "names": ["a\\u000a", 3],
    }
    assert (line["rate"], line["address"]) == ("inf", "[::1]:7443")
    logs.setup("text", "info", stream)
    logging.getLogger(logs.CALLS).info("call", extra={"fields": {**fields, "none": []}})
    assert (
        stream.getvalue()
        .rstrip()
        .endswith("free_bytes=7,8 free_inodes=None,9 share=0.500 full=False names=a\\u000a,3")
    )


def test_auto_chooses_text_on_a_terminal(stream: io.StringIO) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    logs.setup("auto", "info", terminal)
    logging.getLogger(logs.CALLS).warning(
        "call", extra={"fields": {"dataset": "my files", "seconds": 0.5, "reason": ""}}
    )
    assert terminal.getvalue().rstrip().endswith('warning: call dataset="my files" seconds=0.500')
    logs.setup("auto", "info", stream)
    logging.getLogger(logs.CALLS).info("call")
    assert json.loads(stream.getvalue())["message"] == "call"


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_log_line_contains_a_credential(stream: io.StringIO, log_format: str) -> None:
    secrets = [TOKEN, f"Bearer {TOKEN}", "bearer abcdef", f"staddle-master-key-1 {'ab' * 32} 01234567"]
    secrets.append("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----")
    logs.setup(log_format, "info", stream)
    for secret in secrets:
        try:
            raise ValueError(f"bad {secret} here")
        except ValueError:
            logging.getLogger("staddle_server.x").exception(
                "got %s", secret, extra={"fields": {"value": f"<{secret}>"}}
            )
    written = stream.getvalue()
    for leaked in (TOKEN, "abcdef", "abab", "MHcCAQEE"):
        assert leaked not in written
    assert written.count(logs.REDACTED) >= 3 * len(secrets)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_hostile_name_cannot_start_a_new_line(stream: io.StringIO, log_format: str) -> None:
    logs.setup(log_format, "info", stream)
    hostile = "a\nlevel=info forged\r\x1b[2J\u2028\x85\udcff"
    logging.getLogger("staddle_server.x").info(
        "dataset %s", hostile, extra={"fields": {"dataset": hostile, hostile: 1}}
    )
    written = stream.getvalue()
    assert len(written.splitlines()) == 1
    assert "\x1b" not in written
    written.encode()


def test_a_field_cannot_replace_the_standard_fields(stream: io.StringIO) -> None:
    logs.setup("json", "info", stream)
    logging.getLogger("staddle_server.x").info(
        "real", extra={"fields": {"level": "fatal", "message": "false"}}
    )
    line = json.loads(stream.getvalue())
    assert (line["level"], line["message"]) == ("info", "real")


def test_the_level_limits_what_is_written_and_libraries_log_warnings_only(stream: io.StringIO) -> None:
    logs.setup("json", "warning", stream)
    logging.getLogger("staddle_server.x").info("no")
    logging.getLogger("somebody.else").info("no")
    logging.getLogger("somebody.else").warning("yes")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["yes"]


def test_setting_up_twice_writes_each_line_once(stream: io.StringIO) -> None:
    logs.setup("json", "info", sys.stderr)
    logs.setup("json", "info", stream)
    logging.getLogger("staddle_server.x").info("once")
    assert stream.getvalue().count("once") == 1
