"""Every command with a closed standard output: commands that only show something fail, the others do their work."""

import os
import sys
from pathlib import Path

import forked
from command_line import CommandLine
from command_tree import BY_NAME
from staddle.v1 import service_pb2 as sv

LAUNCHER = Path(forked.__file__).with_name("closed_stdout.py")
LOST = "Cannot write to standard output: it is closed.\n"
REFUSED = "Standard output is closed"
DRY = "--dry-run"


def test_with_closed_output_showing_commands_fail_and_changing_ones_do_their_work(
    staddle: CommandLine, running, source: Path, tmp_path: Path
) -> None:
    made = [staddle("backup", source, "--dataset", "www", "--json").summary["id"] for _ in range(3)]
    newest, older = made[2], made[1]
    target = ("--target", tmp_path / "out")
    request = sv.BeginUploadRequest(dataset="www", request_id="open")
    pending = running.stub().BeginUpload(request).upload.id
    changes = {
        "backup": [source, "--dataset", "other"],
        "restore": ["www", *target],
        "hold": ["www", newest, "--reason", "case"],
        "release": ["www", newest],
        "retain": ["www", newest, "--until", "2100-01-01"],
        "delete": ["www", older, "--yes"],
        "undelete": ["www", older],
        "retention set": ["www", "--keep-last", "2"],
        "retention apply": ["www", "--yes"],
        "uploads": ["--abort", pending, "--yes"],
        "expect": ["www", "--every", "24h"],
    }
    shows = {
        "backup": [source, "--dataset", "other", DRY],
        "restore": ["www", *target, DRY],
        "list": [],
        "ls": ["www"],
        "diff": ["www"],
        "retention show": ["www"],
        "retention plan": ["www"],
        "uploads": [],
        "status": [],
        "runs": [],
        "events": [],
        "expect": [],
        "info": [],
    }
    refused = {"cat": ["www", "hello.txt"], "restore": ["www", "--format", "tar"]}
    assert {*changes, *shows, *refused} == {*BY_NAME}

    def closed(*arguments: object) -> tuple[int, str]:
        words = [sys.executable, LAUNCHER, "staddle", *map(os.fspath, arguments)]
        done = forked.run(words, capture_output=True, timeout=120, env=staddle.environment)
        assert done.stdout == b""
        return done.returncode, done.stderr.decode()

    for rows, code, words in ((changes, 0, ""), (shows, 1, LOST), (refused, 2, REFUSED)):
        for name, arguments in rows.items():
            for form in ([], ["--json"]):
                if form and rows is changes:
                    continue
                ended, said = closed(*name.split(), *arguments, *form)
                assert ended == code, (name, said)
                assert '"reason": "STDOUT"' in said if form and code == 1 else words in said, (name, said)
    for arguments in (["--help"], ["--version"], ["list", "--help"], []):
        assert closed(*arguments) == (1, f"staddle: {LOST}")
    assert closed("list", "--unheard-of")[0] == 2
    assert (tmp_path / "out" / "hello.txt").exists()
    assert "other" in staddle("list").out.decode()
