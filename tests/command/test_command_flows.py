"""From a first backup to a restored file, as a user does it."""

import base64
import datetime
import os
import re
from pathlib import Path

import staddle_server
from command_line import CommandLine
from staddle import Client
from staddle_server.catalog import ServerIdentity


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_directory_is_backed_up_to_a_separate_server_and_restored(
    unconfigured, server, source, tmp_path
) -> None:
    staddle: CommandLine = unconfigured
    staddle.variables = {"STADDLE_CONFIG": str(server.config)}
    first = staddle("backup", source, "--dataset", "www", "--tag", "why=nightly")
    (line,) = first.lines
    assert re.fullmatch(
        r"Backup [0-9a-f]{8} of www \(full, number 1\): 7 entries, 10\.0 KiB; .* new, .*\.", line
    )
    assert first.err == ""

    before = tree(source)
    (source / "hello.txt").write_text("Hello again!\n")
    (source / "new").write_text("new")
    (source / "etc" / "deep" / "empty").unlink()
    second = staddle("backup", source, "--dataset", "www", "--json").summary
    assert (second["kind"], second["number"], second["complete"]) == ("incremental", 2, True)
    assert second["sent_bytes"] < second["data_bytes"]
    assert second["reused_bytes"] == second["data_bytes"] - second["sent_bytes"]
    assert second["changes"]["content_changed"] == 1

    listed = staddle("list", "www").lines
    assert listed[0].split() == [
        "ID",
        "NUMBER",
        "KIND",
        "BEGAN",
        "ENTRIES",
        "SIZE",
        "STORED",
        "CHANGES",
        "TAGS",
    ]
    assert listed[1].startswith(second["id"][:8])
    assert listed[2].endswith("why=nightly")
    assert listed[3].startswith("2 backups of www")

    changed = staddle("diff", "www").lines
    assert {"~ hello.txt", "+ new", "- etc/deep/empty"} <= set(changed)
    assert changed[-1].count("number") == 2

    out = tmp_path / "out"
    began = staddle("list", "www", "--json").records[1]["begin_time"]
    restored = staddle("restore", "www", "--target", out, "--at", began)
    assert "number 1" in restored.lines[0]
    assert len(restored.lines) == 1
    assert tree(out) == before
    assert (out / "link").readlink() == Path("etc/conf")
    assert (out / "etc" / "conf").stat().st_mode & 0o7777 == 0o640


def test_an_incremental_backup_reports_how_much_it_reused(staddle, source) -> None:
    staddle("backup", source, "--dataset", "www")
    (line,) = staddle("backup", source, "--dataset", "www", "--kind", "full").lines
    assert "; 0 B new, 10.0 KiB reused;" in line
    (line,) = staddle("backup", source, "--dataset", "www", "--thin", "--kind", "full").lines
    assert "; 10.0 KiB sent, 0 B reused;" in line


def test_patterns_and_pattern_files_exclude_paths(staddle, source, tmp_path) -> None:
    patterns = tmp_path / "patterns"
    patterns.write_text("*.txt\n")
    staddle("backup", source, "--dataset", "www", "--exclude", "deep/", "--exclude-file", patterns)
    listed = staddle("ls", "www", "-R").lines
    assert listed[:-1] == ["etc/", "etc/conf", "link"]


def test_another_root_is_refused_until_it_is_meant(staddle, source) -> None:
    staddle("backup", source, "--dataset", "www")
    refused = staddle("backup", source / "etc", "--dataset", "www", code=1)
    assert "--new-root" in refused.err
    assert (
        staddle("backup", source / "etc", "--dataset", "www", "--json", code=1).error["reason"]
        == "ROOT_DIFFERS"
    )
    staddle("backup", source / "etc", "--dataset", "www", "--new-root")
    refused = staddle("backup", source / "etc", "--dataset", "www", "--host", "elsewhere", code=1)
    assert "--host" in refused.err


def test_one_file_is_a_backup_of_one_entry(staddle, source) -> None:
    staddle("backup", source / "hello.txt", "--dataset", "hello")
    assert staddle("ls", "hello").lines[:-1] == ["hello.txt"]


def test_the_list_of_datasets_shows_their_source(staddle, source) -> None:
    assert staddle("list").lines == ["No datasets yet. `staddle backup PATH --dataset NAME` makes the first."]
    staddle("backup", source, "--dataset", "www", "--host", "web1")
    heading, row, summary = staddle("list").lines
    assert heading.split() == ["NAME", "BACKUPS", "NEWEST", "SIZE", "PROVEN", "FROM"]
    assert row.startswith("www")
    assert row.endswith(f"web1:{source}")
    assert summary == "1 dataset, 1 backup."
    dataset, summed_up = staddle("list", "--json").records
    assert (dataset["name"], dataset["backup_count"], summed_up["dataset_count"]) == ("www", 1, 1)
    assert dataset["newest_backup"]["data_bytes"] == 10247
    assert dataset["drill"] is None


def test_the_list_of_datasets_shows_which_backup_is_proven(staddle, running, source) -> None:
    staddle("backup", source, "--dataset", "www")
    assert "  not yet  " in staddle("list").lines[1]
    backup = running.catalog.drills.newest(running.tenant, "www")
    now_ns = running.clock.now_ns()
    running.catalog.drills.note(backup, now_ns, "")
    day = datetime.datetime.fromtimestamp(now_ns / 1e9).astimezone().date()
    assert f"  #1 {day}  " in staddle("list").lines[1]
    running.catalog.drills.note(backup, now_ns, "\x1b[2J 1 path is damaged")
    assert "  DAMAGED  " in staddle("list").lines[1]
    drill = staddle("list", "--json").records[0]["drill"]
    assert (drill["fault"], drill["proven_number"]) == ("\x1b[2J 1 path is damaged", 1)


def test_a_long_listing_reads_like_that_of_ls(staddle, source) -> None:
    staddle("backup", source, "--dataset", "www")
    lines = staddle("ls", "www", "-lR").lines
    by_name = {line.split("  ")[-1]: line.split() for line in lines[:-1]}
    assert by_name["etc/conf"][0] == "-rw-r-----"
    assert by_name["etc/"][0].startswith("drwx")
    assert by_name["link -> etc/conf"][0] == "lrwxrwxrwx"
    assert by_name["etc/conf"][3:5] == ["10.0", "KiB"]
    assert lines[-1].startswith("6 entries, 10.0 KiB, in backup ")
    assert [line.split("  ")[-1] for line in staddle("ls", "www", "-l", "etc/").lines[:-1]] == [
        "etc/conf",
        "etc/deep/",
    ]
    entries = staddle("ls", "www", "-R", "--json").records[:-1]
    conf = next(entry for entry in entries if entry["path"] == "etc/conf")
    assert (conf["type"], conf["mode"], conf["size_bytes"]) == ("file", "0640", 10240)
    assert conf["mtime_ns"] == (source / "etc" / "conf").stat().st_mtime_ns
    assert conf["mtime"].endswith(f"{conf['mtime_ns'] % 10**9:09d}Z")


def test_a_diff_compares_the_last_two_backups_or_the_named_ones(staddle, source) -> None:
    assert staddle("diff", "www", "--json", code=1).error["reason"] == "DATASET_NOT_FOUND"
    first = staddle("backup", source, "--dataset", "www", "--json").summary["id"]
    alone = staddle("diff", "www", code=1)
    assert "needs two" in alone.err
    (source / "hello.txt").chmod(0o600)
    staddle("backup", source, "--dataset", "www")
    assert "m hello.txt" in staddle("diff", "www").lines
    (source / "new").touch()
    third = staddle("backup", source, "--dataset", "www", "--json").summary["id"]
    assert "m hello.txt" not in staddle("diff", "www").lines
    assert {"m hello.txt", "+ new"} <= set(staddle("diff", "www", first[:6]).lines)
    assert "- new" in staddle("diff", "www", "latest", first[:8]).lines
    records = staddle("diff", "www", first, third, "--json").records
    change = next(record for record in records if record.get("path") == "hello.txt")
    assert (change["change"], change["before"]["mode"], change["after"]["mode"]) == (
        "metadata",
        "0644",
        "0600",
    )
    assert records[-1]["added"] == 1
    assert (records[-1]["from"]["id"], records[-1]["to"]["id"]) == (first, third)


def test_cat_writes_exactly_the_bytes(staddle, source) -> None:
    staddle("backup", source, "--dataset", "www")
    data = (source / "etc" / "conf").read_bytes()
    whole = staddle("cat", "www", "etc/conf")
    assert whole.out == data
    assert "etc/conf from backup" in whole.err
    for text, wanted in (
        (":", data),
        ("250:260", data[250:260]),
        (":3", data[:3]),
        ("10239:", data[-1:]),
        ("5:5", b""),
    ):
        assert staddle("cat", "www", "etc/conf", "--range", text).out == wanted
    assert staddle("cat", "www", "etc/conf", "--range", "20000:30000").out == b""
    *pieces, summary = staddle("cat", "www", "etc/conf", "--json").records
    assert b"".join(base64.b64decode(piece["data_base64"]) for piece in pieces) == data
    assert summary["data_bytes"] == len(data)
    assert "directory" in staddle("cat", "www", "etc", code=1).err


def test_cat_streams_a_large_file(staddle, tmp_path) -> None:
    data = b"".join(number.to_bytes(4, "big") for number in range(1_500_000))
    (tmp_path / "large").write_bytes(data)
    staddle("backup", tmp_path / "large", "--dataset", "large")
    assert staddle("cat", "large", "large").out == data
    assert staddle("cat", "large", "large", "--range", "2097000:5000000").out == data[2097000:5000000]
    pieces = staddle("cat", "large", "large", "--json").records[:-1]
    assert len(pieces) > 4
    assert base64.b64decode("".join(piece["data_base64"] for piece in pieces)) == data


def test_selected_paths_are_all_restored_or_none(staddle, source, tmp_path) -> None:
    staddle("backup", source, "--dataset", "www")
    out = tmp_path / "out"
    missing = staddle("restore", "www", "etc/deep", "nope", "--target", out, code=1)
    assert "nope" in missing.err
    assert not out.exists()
    done = staddle("restore", "www", "etc/deep/", "hello.txt", "--target", out, "--json").summary
    assert tree(out) == {"etc/deep/empty": b"", "hello.txt": b"Hello!\n"}
    assert done["backup"]["number"] == 1
    (out / "hello.txt").write_text("mine")
    staddle("restore", "www", "hello.txt", "--target", out, "--overwrite", "never")
    assert (out / "hello.txt").read_text() == "mine"
    staddle("restore", "www", "hello.txt", "--target", out)
    assert (out / "hello.txt").read_text() == "Hello!\n"


def test_a_time_selects_a_backup_and_the_output_names_it(staddle, source) -> None:
    first = staddle("backup", source, "--dataset", "www", "--json").summary
    staddle("backup", source, "--dataset", "www")
    began = datetime.datetime.fromisoformat(first["begin_time"][:26] + "+00:00")
    assert "(number 1," in staddle("ls", "www", "--at", began.isoformat()).lines[-1]
    assert "(number 2," in staddle("ls", "www", "--at", "0s").lines[-1]
    assert "(number 2," in staddle("ls", "www").lines[-1]
    assert "(number 2," in staddle("ls", "www", "--backup", "latest").lines[-1]
    assert "(number 1," in staddle("ls", "www", "--backup", first["id"][:7]).lines[-1]
    assert "(number 1," in staddle("cat", "www", "hello.txt", "--backup", first["id"]).err
    early = staddle("ls", "www", "--at", "2001-02-03", code=1)
    assert first["begin_time"][:26] in early.err
    assert "earliest" in early.err
    error = staddle("ls", "www", "--at", "1w", "--json", code=1).error
    assert error["reason"] == "BACKUP_NOT_FOUND"
    assert error["earliest"].startswith(first["begin_time"][:23])


def test_a_time_copied_from_a_list_selects_its_backup(staddle, source) -> None:
    staddle("backup", source, "--dataset", "www")
    began = staddle("list", "www").lines[1].split("  ")
    moment = next(cell for cell in began if re.match(r"\d{4}-\d\d-\d\d ", cell))
    assert "(number 1," in staddle("ls", "www", "--at", moment).lines[-1]


def test_info_shows_the_caller(staddle, running) -> None:
    lines = staddle("info").lines
    assert lines[-1].startswith(f"Connected to {running.address} as admin-")
    reported = staddle("info", "--json").summary
    assert (reported["role"], reported["tenant"], reported["server"]) == ("admin", "default", running.address)
    assert "seed" not in reported["chunker"]


def test_info_lists_the_servers_of_a_service_that_has_several(staddle, running) -> None:
    (only,) = staddle("info", "--json").summary["servers"]
    assert (only["state"], only["version"]) == ("live", staddle_server.__version__)
    assert not any(line.startswith("servers") for line in staddle("info").lines)
    other = ServerIdentity(b"2" * 16, "", "there", "there.example:7443", "9.9", "process 1 on there")
    running.catalog.servers.beat(other, draining=True)
    shown = staddle("info").lines
    first = next(number for number, line in enumerate(shown) if line.startswith("servers "))
    assert shown[first].endswith(f"{only['endpoint']} ({only['version']}), live")
    assert shown[first + 1].strip() == "there.example:7443 (9.9), draining"
    assert not any("process 1" in line for line in shown)


def test_an_unreadable_file_is_named_and_the_rest_is_backed_up(staddle, source) -> None:
    make_deep(source, 75)
    done = staddle("backup", source, "--dataset", "www", code=3)
    assert "not read: " in done.err
    assert "not backed up whole" in done.lines[0]
    records = staddle("backup", source, "--dataset", "www", "--json", code=3).records
    assert records[0]["problem"] == "unreadable"
    assert records[-1]["problem_count"] == len(records) - 1
    assert records[-1]["complete"] is False
    assert staddle("cat", "www", "hello.txt").out == b"Hello!\n"


def make_deep(root: Path, levels: int) -> None:
    """A deep chain of directories, created step by step."""
    descriptor = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("e" * 240, dir_fd=descriptor)
        below = os.open("e" * 240, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def test_a_restore_can_be_verified_by_content_with_an_exit_code(
    staddle: CommandLine, source: Path, tmp_path: Path
) -> None:
    staddle("backup", source, "--dataset", "d")
    target = tmp_path / "target"
    dry = staddle("restore", "d", "--target", target, "--dry-run", "--json").summary
    assert dry["dry_run"] is True
    assert not target.exists()
    done = staddle("restore", "d", "--target", target, "--json").summary
    assert done["entries_written"] >= dry["entries_written"] - 1
    staddle("restore", "d", "--target", target, "--verify", "-n")
    status = (target / "hello.txt").stat()
    (target / "hello.txt").write_text("Jello!\n")
    os.utime(target / "hello.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    checked = staddle("restore", "d", "--target", target, "--verify", "-n", code=3)
    assert "different: hello.txt: " in checked.err
    assert (target / "hello.txt").read_text() == "Jello!\n"
    assert "1 entry written" in staddle("restore", "d", "--target", target, "--verify").lines[-1]
    assert (target / "hello.txt").read_text() == "Hello!\n"


def test_listings_mark_directories_with_unreadable_paths(staddle, running, tmp_path) -> None:
    with Client(running.address, running.token("admin")) as client:
        for incomplete in (False, True):
            with client.upload("www") as upload:
                upload.mkdir("d", incomplete=incomplete)
                if not incomplete:
                    upload.put("d/f", b"f")
    line = next(line for line in staddle("ls", "www", "-l").lines if " d/" in line)
    assert line.endswith("d/ (incomplete: not everything in it could be read)")
    assert staddle("ls", "www", "--json").records[0]["incomplete"]
    lines = staddle("diff", "www").lines
    assert "- d/f (uncertain: its directory is incomplete)" in lines
    assert "m d/ (incomplete: not everything in it could be read)" in lines
    removed = [each for each in staddle("diff", "www", "--json").records if each.get("change") == "removed"]
    assert [(each["path"], each["uncertain"]) for each in removed] == [("d/f", True)]
    target = tmp_path / "target"
    (target / "d").mkdir(parents=True)
    (target / "d" / "mine").touch()
    ended = staddle("restore", "www", "--target", target, "--delete", "--yes", code=3)
    assert "could not read everything in this directory" in ended.err
    assert (target / "d" / "mine").exists()
