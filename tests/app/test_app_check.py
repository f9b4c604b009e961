"""`staddle-server check` and `repair` beside a running server: their output and their exit codes."""

import contextlib
import json
import os
import pty
import sys
from pathlib import Path

import forked
import pytest
from thin import back_up, noise, restore

DATA = noise(1_200_000, 5)


def run(server, *words):
    """The command's exit status, and what it printed."""
    done = forked.run(
        [str(Path(sys.executable).with_name("staddle-server")), *words, "--data", str(server.data)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def on_a_terminal(server, *words):
    """What the command shows on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).with_name("staddle-server")), *words, "--data", str(server.data)]
    with forked.start(command, stdout=theirs, env=os.environ | {"COLUMNS": "80"}) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal says that the other end was closed
            while more := os.read(ours, 4096):
                shown += more
        os.close(ours)
        process.wait(60)
    return shown.decode()


def lines(output):
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture
def pack(server):
    """The one pack of a server with a backup."""
    back_up(server.stub(), "www", {"a": DATA, "b": b"small"})
    (path,) = (path for path in (server.data / "store" / "packs").rglob("*") if path.is_file())
    return path


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_checking_a_sound_store_exits_0_in_text_and_as_json(server, pack):
    status, out, err = run(server, "check")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "Checked 1 pack, 3 records and 1 backup of 1 tenant.",
        "No damage. (The data itself was not read: --read-data.)",
    ]
    status, out, _ = run(server, "check", "--read-data", "--json", "--seed", "7")
    (summary,) = lines(out)
    assert status == 0
    assert (summary["kind"], summary["packs_read"], summary["damage"], summary["seed"]) == (
        "summary",
        1,
        0,
        7,
    )
    assert 0 < pack.stat().st_size - summary["bytes_read"] < 1000


def test_damage_exits_1_with_backup_and_path_until_the_next_backup_heals_it(server, pack):
    flip(pack, 600_000)
    status, out, _ = run(server, "check", "--read-data=100", "--json")
    *found, summary = lines(out)
    assert status == 1
    assert summary["damage"] == len(found) == 2
    path, segment = found
    assert (path["kind"], path["path"], path["dataset"], path["number"]) == ("path", "a", "www", 1)
    assert (segment["kind"], segment["pack"], path["segment"]) == ("segment", pack.name, segment["segment"])
    assert segment["object"].endswith(pack.name)
    status, out, _ = run(server, "check", "--tenant", "default")
    assert status == 1
    assert "DAMAGE: a in backup" in out
    assert "staddle-server repair" in out
    shown = on_a_terminal(server, "check", "--tenant", "default")
    assert shown.split() == out.split()
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert max(map(len, out.splitlines())) > 80
    status, out, _ = run(server, "repair")
    assert status == 1
    assert "1 path in backups cannot be restored completely" in out
    back_up(server.stub(), "www", {"a": DATA, "b": b"small"})
    status, out, _ = run(server, "check", "--read-data")
    assert status == 0
    assert "healed: " in out
    assert restore(server.stub(), "www").files["a"] == DATA


def test_repair_saves_the_data_of_a_pack_without_a_header_and_exits_0(server, pack):
    flip(pack, 3)
    status, out, _ = run(server, "repair", "--dry-run")
    assert status == 1
    assert "Would repair: " in out
    status, out, _ = run(server, "repair", "--json")
    summary = lines(out)[-1]
    assert (status, summary["packs"], summary["damage"]) == (0, 1, 0)
    assert {each["kind"] for each in lines(out)} >= {"saved", "footer", "summary"}
    assert restore(server.stub(), "www").files["a"] == DATA


def test_wrong_usage_exits_2_and_an_unknown_tenant_is_an_error(server):
    for percent, said in (("0", "0 reads nothing"), ("some", "use a number from 0 to 100")):
        status, _, err = run(server, "check", f"--read-data={percent}")
        assert status == 2
        assert "Usage: " in err
        assert said in err
    status, out, err = run(server, "check", "--tenant", "nobody")
    assert (status, out) == (1, "")
    assert "tenant 'nobody'" in err


def test_many_damaged_paths_are_listed_in_part_as_text_and_completely_as_json(server):
    names = [f"f{n:03}" for n in range(30)]
    back_up(server.stub(), "www", {name: name.encode() * 50 for name in names})
    (path,) = (path for path in (server.data / "store" / "packs").rglob("*") if path.is_file())
    flip(path, 300)
    status, out, _ = run(server, "check", "--read-data")
    assert status == 1
    assert out.count("cannot be restored completely: chunk") == 20
    assert "… and 10 more paths: --json lists all of them." in out
    status, out, _ = run(server, "check", "--read-data", "--json")
    assert [each["path"] for each in lines(out) if each["kind"] == "path"] == names


def test_repair_restores_a_pack_from_its_parity(server, pack):
    status, _, err = run(server, "parity", "--percent", "10")
    assert status == 0, err
    before = pack.read_bytes()
    flip(pack, 5000)
    assert run(server, "check", "--read-data")[0] == 1
    status, out, _ = run(server, "repair", "--dry-run")
    assert status == 1
    assert pack.read_bytes() != before, "a dry run changes nothing"
    status, out, _ = run(server, "repair")
    assert status == 0
    assert f"repaired: pack {pack.name}, 4,096 bytes of it from its parity" in out
    assert "Repaired: 1 pack from parity, 0 chunks saved" in out
    assert pack.read_bytes() == before
    assert run(server, "check", "--read-data")[0] == 0
    assert restore(server.stub(), "www").files == {"a": DATA, "b": b"small"}
