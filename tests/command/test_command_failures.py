"""Failures of the command: exit code, message, and remaining state."""

import base64
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import CommandLine, Done

WAIT_S = 60.0
AT_ONCE_S = 30.0
"""Not tried again and again: a busy machine alone takes seconds to start a command."""


# --- no server, or an unknown token


def test_a_server_that_is_down_is_named_immediately(unconfigured: CommandLine) -> None:
    begun_s = time.monotonic()
    failed = unconfigured("list", "--server", "127.0.0.1:1", "--token", "x", code=1)
    assert time.monotonic() - begun_s < AT_ONCE_S
    assert "127.0.0.1:1" in failed.err
    assert "staddle-server serve" in failed.err
    assert failed.out == b""
    error = unconfigured(
        "backup", "/", "--dataset", "d", "--server", "127.0.0.1:1", "--token", "x", "--json", code=1
    ).error
    assert (error["reason"], error["address"]) == ("CONNECT", "127.0.0.1:1")


def test_of_several_servers_the_one_that_answers_is_shown(staddle: CommandLine, running) -> None:
    servers = f"127.0.0.1:1,{running.address}"
    summary = staddle("info", "--server", servers, "--json").summary
    assert (summary["server"], set(summary["addresses"])) == (running.address, set(servers.split(",")))
    failed = staddle("list", "--server", "127.0.0.1:1,127.0.0.1:2", code=1).err
    assert "None of 2 servers answers: " in failed
    assert "127.0.0.1:2 (connection refused)" in failed


def test_a_wrong_token_is_refused_and_says_how_to_get_one(staddle: CommandLine) -> None:
    failed = staddle("list", "--token", "wrong", code=1)
    assert "staddle-server token create" in failed.err
    assert staddle("list", "--json", code=1, STADDLE_TOKEN="wrong").error["reason"] == "UNAUTHENTICATED"


def test_a_reader_may_list_but_not_back_up(staddle: CommandLine, running, source: Path) -> None:
    reader = running.token("reader")
    staddle("info", "--token", reader)
    error = staddle("backup", source, "--dataset", "d", "--token", reader, "--json", code=1).error
    assert (error["reason"], error["role"]) == ("PERMISSION_DENIED", "writer")


def test_without_any_configuration_every_place_is_named(unconfigured: CommandLine) -> None:
    error = unconfigured("list", code=1).err
    for place in (
        "STADDLE_SERVER",
        "STADDLE_TOKEN",
        "STADDLE_CONFIG",
        ".config/staddle/client.toml",
        "/etc/staddle/client.toml",
    ):
        assert place in error


def test_flags_come_before_the_environment_and_the_file(
    unconfigured: CommandLine, running, tmp_path: Path
) -> None:
    file = tmp_path / "client.toml"
    file.touch(0o600)
    file.write_text(f'server = "{running.address}"\ntoken = "wrong"\n')
    unconfigured("info", "--config", file, code=1)
    unconfigured("info", "--config", file, STADDLE_TOKEN=running.token("reader"))
    unconfigured("info", STADDLE_CONFIG=str(file), STADDLE_TOKEN=running.token("reader"), STADDLE_SERVER="")
    unconfigured("info", "--config", file, "--token", running.token("reader"), STADDLE_TOKEN="wrong too")
    file.chmod(0o644)
    warned = unconfigured("info", "--config", file, "--token", running.token("reader"))
    assert "chmod 600" in warned.err


# --- wrong usage


USAGE = [
    ["--bogus"],
    ["nonsense"],
    ["backup"],
    ["backup", "--dataset", "d"],
    ["backup", "/a"],
    ["backup", "/a", "--dataset", "d", "--name", "n"],
    ["backup", "/a", "--dataset", "d", "--kind", "partial"],
    ["backup", "/a", "--dataset", "d", "--tag", "novalue"],
    ["backup", "/a", "--dataset", "d", "--tag", "k=1", "--tag", "k=2"],
    ["backup", "/a", "--dataset", "d", "--retry", "soon"],
    ["backup", "/a", "--dataset", "d", "--retry", "8d"],
    ["backup", "-", "--dataset", "d"],
    ["backup", "-", "--dataset", "d", "--name", "../out"],
    ["backup", "-", "--dataset", "d", "--name", ""],
    ["backup", "-", "--dataset", "d", "--name", "n", "--exclude", "x"],
    ["backup", "--dataset", "d", "--name", "n", "--from-command"],
    ["restore", "d"],
    ["restore", "d", "../etc", "--target", "/tmp/x"],
    ["restore", "d", "--target", "/tmp/x", "--overwrite", "maybe"],
    ["restore", "d", "--target", "/tmp/x", "--backup", "ab12", "--at", "2h"],
    ["ls"],
    ["ls", "d", "/etc"],
    ["ls", "d", "--at", "yesterdayish"],
    ["ls", "d", "--backup", "no-id"],
    ["cat", "d"],
    ["cat", "d", "a", "--range", "9:3"],
    ["cat", "d", "a", "--range", "5"],
    ["cat", "d", "a", "--range", "-3:"],
    ["diff", "d", "no-id"],
    ["info", "more"],
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_a_usage_error_exits_2_without_a_call(arguments: list[str], monkeypatch, capsys) -> None:
    from staddle.command.run import run

    for variable in [name for name in os.environ if name.startswith("STADDLE_")]:
        monkeypatch.delenv(variable)
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Error: " in printed.err
    assert run(["info", "--json"] if arguments == ["info", "more"] else [*arguments, "--json"]) in {1, 2}


def test_a_usage_error_is_json_with_the_json_option(unconfigured: CommandLine) -> None:
    assert unconfigured("ls", "d", "--at", "soon", "--json", code=2).error["reason"] == "USAGE"
    assert unconfigured("ls", "d", "--bogus", "--json", code=2).error["message"]


def test_a_field_refused_by_the_server_is_a_usage_error(staddle: CommandLine, source: Path) -> None:
    assert staddle("backup", source, "--dataset", "x" * 300, "--json", code=2).error["reason"] == "BAD_FIELD"


# --- the local machine


def test_a_missing_path_is_named(staddle: CommandLine, tmp_path: Path) -> None:
    failed = staddle("backup", tmp_path / "nowhere", "--dataset", "d", code=1)
    assert "nowhere: No such file or directory" in failed.err
    staddle("backup", tmp_path / "home", "--dataset", "d", "--exclude-file", tmp_path / "nowhere", code=1)
    assert staddle("list").lines[0].startswith("No datasets")


def test_a_reader_that_stops_ends_the_command_silently(staddle: CommandLine, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    (many / "large").write_bytes(bytes(8_000_000))
    staddle("backup", many, "--dataset", "many")
    for arguments in (["cat", "many", "large"], ["ls", "many"]):
        read, write = os.pipe()
        os.close(read)
        ended = staddle.start(*arguments, stdout=write)
        os.close(write)
        _, err = ended.communicate(timeout=WAIT_S)
        assert ended.returncode == -signal.SIGPIPE
        assert b"roken pipe" not in err
        assert b"Traceback" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_standard_output_is_named_once_and_not_confused_with_the_target(
    staddle: CommandLine, source: Path, tmp_path: Path
) -> None:
    staddle("backup", source, "--dataset", "www")
    why = "annot write to standard output: No space left on device"
    backup = ["backup", source, "--dataset", "www", "--json"]
    restore = ["restore", "www", "--target", tmp_path / "out"]
    policy = ["retention", "set", "www", "--keep-last", "1"]
    for arguments, unbuffered, done in [
        (["list"], "", ""),
        (["list"], "1", ""),
        (["--help"], "", ""),
        (["cat", "www", "etc/conf"], "", ""),
        (["restore", "www", "--target", "-"], "", ""),
        (backup, "", ". The backup itself is done: only its report is lost."),
        ([*backup, "--dry-run"], "", ""),
        ([*restore, "--dry-run"], "", ""),
        (["retention", "show", "www"], "", ""),
        (["retention", "plan", "www"], "", ""),
        (restore, "", ". The restore itself is done: only its report is lost."),
        (policy, "", ". The change itself is done: only its report is lost."),
        (policy, "1", ". The change itself is done: only its report is lost."),
    ]:
        staddle.variables.pop("PYTHONUNBUFFERED", None)
        staddle.variables |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
        with open("/dev/full", "wb") as full:
            ended = staddle.start(*arguments, stdout=full)
            _, err = ended.communicate(timeout=WAIT_S)
        said = err.decode()
        assert (ended.returncode, said.count(why + done)) == (1, 1), said
        assert said.count("No space") == 1
        assert done or "itself is done" not in said
    assert (tmp_path / "out" / "hello.txt").exists()
    with open("/dev/full", "wb") as full:
        ended = staddle.start("list", "--unheard-of", stderr=full)
        ended.communicate(timeout=WAIT_S)
    assert ended.returncode == 2


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_the_extra_the_command_says_what_to_install(package: str) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None; sys.stderr.isatty = lambda: True; import staddle.command;"
        "sys.argv = ['staddle', 'backup', '/', '--dataset', 'd', '--server', '127.0.0.1:1', '--token', 'x'];"
        "staddle.command.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 1
    assert "pip install 'staddle[cli]'" in done.stderr
    assert package in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_and_a_list_load_nothing_that_they_do_not_need() -> None:
    script = (
        "import sys; import grpc, staddle; before = set(sys.modules); import staddle.command.run; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    loaded = done.stdout
    for heavy in ("rich", "pathspec", "pyfastcdc", "zstandard", "asyncio"):
        assert f"'{heavy}'" not in loaded


ENDING = """
import atexit, gc, sys
import staddle.command, staddle
atexit.register(print, "taken down")
def look(*_, **__):
    print("collects", gc.isenabled(), gc.get_freeze_count() > 10_000, end="")
    raise staddle.ConfigError("nothing to see")
staddle.Client.from_config = look
sys.argv = ["staddle", "list"]
staddle.command.main()
"""


def test_a_command_runs_the_garbage_collector_once_and_exits_quickly_with_all_output() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "collects True True")
    assert "Nothing to see" in done.stderr


# --- hostile names


NAMES = {
    b"new\nline": r"new\nline",
    b"\x1b[31mred": r"\x1b[31mred",
    b"latin-\xe9": r"latin-\xe9",
    b"back\\slash": r"back\\slash",
    "\u202etxt.exe".encode(): r"\u202etxt.exe",
    "\x9b2J".encode(): r"\u009b2J",
    "grüße".encode(): "grüße",
    b"end ": "end ",
}


@pytest.fixture
def odd(tmp_path: Path) -> bytes:
    root = os.fsencode(tmp_path / "odd")
    os.mkdir(root)
    for name in NAMES:
        with open(os.path.join(root, name), "wb") as file:
            file.write(name)
    os.symlink(b"to\x07bell", os.path.join(root, b"bell"))
    return root


def is_printable(done: Done) -> bool:
    return all(line.isprintable() for line in [*done.lines, *done.err.splitlines()])


def test_no_name_can_control_the_terminal(staddle: CommandLine, odd: bytes, tmp_path: Path) -> None:
    staddle("backup", odd, "--dataset", "odd", "--tag", "a=\u202eb")
    for arguments in (["ls", "odd"], ["ls", "odd", "-lR"], ["list", "odd"], ["list"]):
        done = staddle(*arguments)
        assert is_printable(done)
    assert set(staddle("ls", "odd").lines[:-1]) == {*NAMES.values(), "bell"}
    assert r"bell -> to\x07bell" in staddle("ls", "odd", "-l").out.decode()
    os.unlink(os.path.join(odd, b"\x1b[31mred"))
    staddle("backup", odd, "--dataset", "odd")
    assert r"- \x1b[31mred" in staddle("diff", "odd").lines
    for wrong in (b"nope\x1b[2J", b"nope\xff", "nope\u202e".encode()):
        for flags in ([], ["--json"]):
            assert is_printable(staddle("ls", "odd", wrong, *flags, code=1))
    assert is_printable(staddle("backup", b"/nope\x1b[2J\n", "--dataset", "odd", code=1))
    assert is_printable(staddle("backup", odd, "--dataset", "odd\x1b[2J", code=2))
    assert is_printable(staddle("no\x1b[2J", code=2))


def test_every_printed_name_can_be_typed_in(staddle: CommandLine, odd: bytes, tmp_path: Path) -> None:
    staddle("backup", odd, "--dataset", "odd")
    for name in NAMES:
        assert staddle("cat", "odd", name).out == name
    out = os.fsencode(tmp_path / "out")
    staddle("restore", "odd", *NAMES, "--target", out)
    assert set(os.listdir(out)) == set(NAMES)


def test_json_has_every_name_exactly_and_is_plain_ascii(staddle: CommandLine, odd: bytes) -> None:
    staddle("backup", odd, "--dataset", "odd")
    done = staddle("ls", "odd", "--json")
    assert done.out.isascii()
    entries = done.records[:-1]
    exact = {
        base64.b64decode(entry["path_base64"]) if "path_base64" in entry else entry["path"].encode()
        for entry in entries
    }
    assert exact == {*NAMES, b"bell"}
    assert sum("path_base64" in entry for entry in entries) == 1


def test_a_terminal_with_a_limited_encoding_still_gets_its_list(staddle: CommandLine, odd: bytes) -> None:
    staddle("backup", odd, "--dataset", "odd")
    done = staddle(
        "ls", "odd", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii:strict"
    )
    assert rb"gr\xfc\xdfe" in done.out
