"""`staddle-server parity`, as operators type it, beside a running server."""

import json
import sys
from pathlib import Path

import pytest
from staddle_server.store import reedsolomon
from test_app_cli import run
from thin import back_up, noise, restore

FILES = {"a": noise(2_000_000, 1)}
SMALL = {"b": noise(100, 2)}


def backed_up(server):
    """Two backups, each in a separate pack."""
    stub = server.stub()
    back_up(stub, "www", FILES)
    back_up(stub, "small", SMALL)
    return stub


def packs_of(server) -> list[Path]:
    """The largest first."""
    found = [path for path in (server.data / "store" / "packs").rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: -path.stat().st_size)


def damage(path: Path, at: int, length: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + length] = bytes(byte ^ 0xFF for byte in data[at : at + length])
    path.write_bytes(data)


def test_flipped_bytes_in_the_store_of_a_running_server_are_repaired(server) -> None:
    stub = backed_up(server)
    made = run("parity", "--data", server.data)
    assert (made.returncode, made.stderr) == (0, "")
    assert "Created parity of 10 % for 2 packs (1.9 MiB): " in made.stdout
    assert "Packs with parity: 2 of 2; " in made.stdout
    assert "Copied 5 objects of records and keys." in made.stdout
    again = run("parity", "--data", server.data, "--percent", "30")
    assert again.stdout.splitlines() == made.stdout.splitlines()[1:2], "no pack lacks parity"

    pack = packs_of(server)[0]
    whole = pack.read_bytes()
    damage(pack, 500_000, 100)
    pack.write_bytes(pack.read_bytes() + b"more")
    assert [each.path for each in restore(stub, "www").damages] == ["a"]
    done = run("parity", "--data", server.data, "--repair")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"tenant default, pack {pack.name}: repaired, 4,096 bytes at 499712; dropped 4 bytes after its end",
        "1 pack marked as damaged: 1 repaired, 0 found intact, 0 not repaired.",
    ]
    assert pack.read_bytes() == whole
    found = restore(stub, "www")
    assert (found.files, found.damages) == (FILES, [])
    assert run("parity", "--data", server.data, "--repair").stdout == "No pack is marked as damaged.\n"


def test_irreparable_damage_is_reported_and_sets_the_exit_code(server) -> None:
    stub = backed_up(server)
    run("parity", "--data", server.data)
    pack = packs_of(server)[0]
    damage(pack, 100_000, 1_000_000)
    lost = pack.read_bytes()
    assert restore(stub, "www").damages
    done = run("parity", "--data", server.data, "--repair")
    assert done.returncode == 1
    assert f"pack {pack.name}: NOT repaired: " in done.stderr
    assert "nothing was changed" in done.stderr
    assert done.stdout == "1 pack marked as damaged: 0 repaired, 0 found intact, 1 not repaired.\n"
    assert pack.read_bytes() == lost
    assert restore(stub, "small").files == SMALL
    made = run("parity", "--data", server.data)
    assert made.returncode == 0
    assert "Packs with parity: 2 of 2; " in made.stdout


def test_a_damaged_pack_without_parity_is_named_by_the_run_that_finds_it(server) -> None:
    backed_up(server)
    pack = packs_of(server)[0]
    damage(pack, 500_000, 1)
    done = run("parity", "--data", server.data)
    assert done.returncode == 1
    assert f"No parity, tenant default: pack {pack.name} is damaged at " in done.stderr
    assert "Packs with parity: 1 of 2; " in done.stdout
    again = run("parity", "--data", server.data)
    assert again.returncode == 0
    assert "1 pack was marked as damaged earlier, or published meanwhile." in again.stdout
    repair = run("parity", "--data", server.data, "--repair")
    assert repair.returncode == 1
    assert "it has no parity" in repair.stderr


def test_json_has_one_object_for_each_pack_and_one_for_the_run(server) -> None:
    stub = backed_up(server)
    lines = [json.loads(line) for line in run("parity", "--data", server.data, "--json").stdout.splitlines()]
    assert [line["what"] for line in lines] == ["made", "made", "parity"]
    sizes = [line["pack_bytes"] for line in lines[:2]]
    assert sorted(sizes) == sorted(path.stat().st_size for path in packs_of(server))
    assert lines[2]["packs"] == 2
    assert lines[2]["pack_bytes"] == sum(sizes)
    assert lines[2]["parity_bytes"] == sum(line["parity_bytes"] for line in lines[:2])
    assert (lines[2]["copied"], lines[2]["damaged"], lines[2]["made_again"]) == (5, 0, 0)

    large, small = packs_of(server)
    damage(large, 500_000, 1)
    small.unlink()
    (record, *_) = (path for path in (server.data / "store" / "records").rglob("*-*"))
    record.unlink()
    for dataset in ("www", "small"):
        assert restore(stub, dataset).damages
    done = run("parity", "--data", server.data, "--repair", "--json")
    assert done.returncode == 0
    *each, total = [json.loads(line) for line in done.stdout.splitlines()]
    sizes = [large.stat().st_size, small.stat().st_size]
    assert [(line["what"], line["tenant"], line["pack"]) for line in each] == [
        ("repaired", "default", large.name),
        ("repaired", "default", small.name),
    ]
    assert [line["ranges"] for line in each] == [[[499_712, 4096]], [[0, sizes[1]]]]
    assert [line["found_bytes"] for line in each] == [sizes[0], None]
    assert [line["pack_bytes"] for line in each] == sizes
    assert total == {
        "what": "repair",
        "repaired": 2,
        "sound": 0,
        "not_repaired": 0,
        "copied": 0,
        "restored": [str(record.relative_to(server.data / "store"))],
        "damaged_small_objects": [],
    }


def test_lost_parity_is_made_again_and_parity_without_a_pack_is_removed(server) -> None:
    backed_up(server)
    run("parity", "--data", server.data)
    parities = [path for path in (server.data / "store" / "parity").rglob("*") if path.is_file()]
    parities[0].unlink()
    stray = parities[1].with_name("ab" * 16)
    stray = stray.parent.parent / "ab" / stray.name
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"of a pack that is gone")
    done = run("parity", "--data", server.data)
    assert "The parity of 1 pack was missing, truncated or damaged." in done.stdout
    assert "Removed the parity of 1 pack that is gone." in done.stdout
    assert parities[0].exists()
    assert not stray.exists()


def test_an_impossible_percentage_is_refused_and_a_missing_library_is_named(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for percent in ("0", "101", "-1", "ten"):
        assert run("parity", "--data", server.data, "--percent", percent).returncode == 2
    refused = run("serve", "--data", tmp_path / "new", "--parity", "101")
    assert refused.returncode == 2
    assert "a whole number from 0 to 100" in refused.stderr
    backed_up(server)
    monkeypatch.setitem(sys.modules, "pyeclib.ec_iface", None)
    reedsolomon.code.cache_clear()
    for command in (
        ("parity", "--data", server.data),
        ("serve", "--data", tmp_path / "new", "--listen", "127.0.0.1:0", "--parity", "10"),
    ):
        done = run(*command)
        assert done.returncode == 1
        assert "pip install 'staddle[parity]'" in done.stderr


def test_verifying_finds_undetected_damage(server) -> None:
    backed_up(server)
    run("parity", "--data", server.data)
    assert run("parity", "--data", server.data, "--verify").stdout.startswith("Packs with parity: 2 of 2; ")
    large, small = packs_of(server)
    damage(large, 500_000, 1)
    damage(next((server.data / "store" / "parity").rglob(small.name)), 200, 1)
    assert run("parity", "--data", server.data).returncode == 0
    done = run("parity", "--data", server.data, "--verify")
    assert done.returncode == 1
    assert "The parity of 2 packs was missing, truncated or damaged." in done.stdout
    assert f"No parity, tenant default: pack {large.name} is damaged" in done.stderr
    assert run("parity", "--data", server.data, "--repair").returncode == 0
    assert run("parity", "--data", server.data, "--verify").returncode == 0
    assert run("parity", "--data", server.data, "--verify", "--repair").returncode == 2
