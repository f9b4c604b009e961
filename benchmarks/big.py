"""`make big`: a large tree and a large file through everything that Staddle promises, with kills in the middle.

One line for each check: PASS or FAIL, the seconds that the commands took, and the most memory that client and server had. What comes
back is compared by code that is independent of Staddle: every byte, and all metadata. Exit code 1 if anything failed.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from benchmarks.data import files as data
from benchmarks.data import listing
from benchmarks.programs import generated_client, machine
from benchmarks.programs.processes import MIB, Program, Server, run, staddle
from benchmarks.tables.checks import DATASET, GIB, MEMORY_BYTES_MAX, Check, CheckError, Checks, size

CHECKPOINT_BYTES: Final = 64 * MIB
"""So much is packed, compressed, between two checkpoints."""
UNDER_WAY_BYTES: Final = 32 * MIB
"""What client and server have in their hands."""
KILL_AT: Final = 0.6
"""The share of the packs that is stored when a process is killed."""
SETTLE_S: Final = 2.5
"""A file that changed less than 2 s before it is read will be read again by the next backup."""
IMAGE: Final = "disk.img"
STRETCHES: Final = 8


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    files: int = 100_000
    image_bytes: int = 2 * GIB
    entries: int = 1_000_000

    @property
    def disk_bytes(self) -> int:
        """Space that all of it takes at its fullest, with some to spare: one tree of 15 KiB a file for each restore."""
        return 9 * self.files * 16 * 1024 + 6 * self.image_bytes + GIB


SMALL: Final = Sizes(files=400, image_bytes=320 * MIB, entries=20_000)


@dataclass
class State:
    """What the checks share: where things lie, what there is, and what was done."""

    place: Path
    sizes: Sizes
    checks: Checks = field(default_factory=Checks)
    full: dict[str, Any] = field(default_factory=dict)
    """The summary of the first backup."""
    pack_bytes: int = 0
    """What the first backup added to the store."""
    after_full: str = ""
    """A moment between the first backup and the first change."""

    @property
    def lost_bytes_max(self) -> int:
        """What a kill of the server may cost at most, uncompressed: what came since the last checkpoint, and what was under way."""
        sent, stored = self.full["sent_bytes"], self.full["stored_bytes"]
        return int(CHECKPOINT_BYTES * sent / stored) + UNDER_WAY_BYTES

    @property
    def source(self) -> Path:
        return self.place / "source"

    def listing_file(self, name: str) -> Path:
        return self.place / f"{name}.listing"

    def server(self, name: str) -> Server:
        # What came with PutChunks is in the log at this level.
        return Server(self.place / f"server-{name}", options=("--log-level", "debug"))

    def compare(
        self, restored: Path, expected: str, only: Callable[[listing.Line], bool] | None = None
    ) -> None:
        """Raises CheckError if a restored tree is not as a listing says. The large file goes then, to make room.

        The rest stays until the end: ext4 is slow to make files for half a minute after many were removed.
        """
        actual = self.listing_file(restored.name)
        listing.write_listing(restored, actual)
        found = listing.differences(self.listing_file(expected), actual, only or (lambda _line: True))
        if found:
            raise CheckError(f"what came back is not what went in: {'; '.join(found)}")
        (restored / IMAGE).unlink(missing_ok=True)


# --- the data


def make_source(state: State) -> listing.Sum:
    """The tree and the large file in it, and the listing `full`."""
    tree = data.make_tree(state.source, state.sizes.files, "big")
    data.make_image(state.source / IMAGE, state.sizes.image_bytes, "big")
    time.sleep(SETTLE_S)
    summed = listing.write_listing(state.source, state.listing_file("full"))
    print(
        f"      {tree.files:,} files of {size(tree.data_bytes)} and one of {size(state.sizes.image_bytes)}: "
        f"{summed.entries:,} entries"
    )
    return summed


def change_source(state: State, name: str) -> data.Changed:
    """Changes a little, and writes the listing `name`. Answers what was changed, the large file included."""
    changed = data.change_tree(state.source, name)
    data.change_image(state.source / IMAGE, name, STRETCHES)
    time.sleep(SETTLE_S)
    listing.write_listing(state.source, state.listing_file(name))
    # A stretch may touch three chunks, and the cut after it may move.
    return data.Changed(changed.counts, changed.data_bytes + STRETCHES * 4 * MIB)


# --- kinds, restores, times


def check_kinds(state: State, summed: listing.Sum) -> None:
    """Full, incremental and differential backups of a source that changes, and what comes back of each."""
    with state.server("kinds") as server:
        check_full(state, server, summed)
        changed = change_source(state, "second")
        check_incremental(state, server, changed)
        changed_twice = data.Changed({}, changed.data_bytes + change_source(state, "third").data_bytes)
        check_differential(state, server, changed_twice)
        check_parts(state, server)
        check_time(state, server)


def check_full(state: State, server: Server, summed: listing.Sum) -> None:
    with state.checks.check("first backup", server) as check:
        state.full = report = check.backup(state.source)
        state.pack_bytes = server.pack_bytes
        check.expect(report["kind"] == "full" and report["complete"], "it is not a complete full backup")
        check.expect(
            (report["entry_count"], report["data_bytes"]) == summed,
            f"it has {report['entry_count']} entries of {report['data_bytes']} bytes, the source {summed}",
        )
        check.say(f"{size(report['sent_bytes'])} sent, {size(report['stored_bytes'])} stored")
    with state.checks.check("  restored whole", server) as check:
        check.say(f"{check.restore(state.place / 'out-full')['entries_written']:,} entries written")
        state.compare(state.place / "out-full", "full")
    with state.checks.check("nothing changed: an incremental", server) as check:
        report = check.backup(state.source)
        check.expect(report["kind"] == "incremental", f"it became {report['kind']}")
        check.expect(report["read_bytes"] == 0, f"it read {report['read_bytes']} bytes")
        check.expect(
            report["manifest_digest"] == state.full["manifest_digest"],
            "its entries are not those of the first",
        )
        check.say(f"{report['entries_unchanged']:,} entries unread")
    state.after_full = datetime.now(UTC).isoformat()


def check_incremental(state: State, server: Server, changed: data.Changed) -> None:
    with state.checks.check("changed a little: an incremental", server) as check:
        report = check.backup(state.source, "--kind", "incremental")
        check_little(check, report, changed)
        check.say(str(changed))
    with state.checks.check("  restored whole", server) as check:
        check.restore(state.place / "out-incremental")
        state.compare(state.place / "out-incremental", "second")


def check_differential(state: State, server: Server, changed: data.Changed) -> None:
    listing.write_differential(
        state.listing_file("full"), state.listing_file("third"), state.listing_file("differential")
    )
    with state.checks.check("changed again: a differential", server) as check:
        report = check.backup(state.source, "--kind", "differential")
        check.expect(report["base_backup_id"] == state.full["id"], "its base is not the full backup")
        check_little(check, report, changed)
        check.say(f"{report['changes']['metadata_kept']} entries keep the full one's metadata")
    with state.checks.check("  restored whole", server) as check:
        check.restore(state.place / "out-differential")
        state.compare(state.place / "out-differential", "differential")


def check_little(check: Check, report: dict[str, Any], changed: data.Changed) -> None:
    """Little travelled, and not nothing."""
    sent = report["sent_bytes"]
    check.expect(report["complete"], "paths were left out")
    check.expect(
        0 < sent <= changed.data_bytes, f"{sent} bytes were sent, {changed.data_bytes} at most are new"
    )
    check.say(f"{size(sent)} sent, {size(report['stored_bytes'])} stored")


def check_parts(state: State, server: Server) -> None:
    with state.checks.check("restored in part: a directory, a file", server) as check:
        lines = listing.read_listing(state.listing_file("differential"))
        directory = next(
            line.path for line in lines if line.type == "d" and line.path and line.path != data.ODD
        )
        file = next(
            line.path for line in lines if line.type == "-" and not line.path.startswith(directory + "/")
        )
        target = state.place / "out-part"
        check.restore(target, directory, file)
        state.compare(target, "differential", listing.below(directory, file))
        others = [
            line.path for line in listing.read_listing(state.listing_file("out-part")) if line.type != "d"
        ]
        wanted = listing.below(directory, file)
        strays = [
            line
            for line in listing.read_listing(state.listing_file("out-part"))
            if line.type != "d" and not wanted(line)
        ]
        check.expect(not strays, f"{len(strays)} others came too")
        check.say(f"{directory}/ with {len(others) - 1} files, {file}")
    with state.checks.check("bytes from the middle of the large file", server) as check:
        start = state.sizes.image_bytes // 2 + 4711
        got = state.place / "range"
        with (
            got.open("wb") as out,
            Program(
                staddle("cat", DATASET, IMAGE, "--range", f"{start}:{start + 5 * MIB}")[:-1],
                env=server.environment,
                out=out,
            ) as program,
        ):
            check.note(program.wait()).checked()
        with (state.source / IMAGE).open("rb") as file_:
            file_.seek(start)
            check.expect(got.read_bytes() == file_.read(5 * MIB), "they are not the bytes of the source")


def check_time(state: State, server: Server) -> None:
    with state.checks.check("restored to an earlier time", server) as check:
        report = check.restore(state.place / "out-time", "--at", state.after_full)
        state.compare(state.place / "out-time", "full")
        check.say(f"--at {state.after_full} gave number {report['backup']['number']}")


# --- kills


def in_the_middle(state: State, server: Server) -> Callable[[], bool]:
    """Waits until a good part of a backup is in the store."""
    return lambda: server.pack_bytes >= KILL_AT * state.pack_bytes


def check_client_killed(state: State, *options: str) -> None:
    """The client is killed in the middle, and the same command run again."""
    way = "thin client" if options else "client"
    with state.server(way.replace(" ", "-")) as server:
        command = staddle("backup", state.source, "--dataset", DATASET, *options)
        kept = 0
        with state.checks.check(f"{way}: killed in the middle", server) as check:
            with Program(command, env=server.environment) as program:
                check.expect(
                    program.watch(in_the_middle(state, server)), "it had ended before it could be killed"
                )
                program.kill()
                check.expect(check.note(program.wait()).code == -9, "it was not killed")
            kept = durable_bytes(check, thin=bool(options))
            check.expect(not backups(check), "there is a backup all the same")
            check.say(f"{size(kept)} received and no backup made")
        with state.checks.check("  the same command again", server) as check:
            report = check.run(command).summary
            sent, most = report["sent_bytes"], most_left(state, kept, thin=bool(options))
            check.expect(report["resumed"], "it did not resume with the stored data")
            check.expect(
                sent <= most, f"it sent {size(sent)}; without what was durable it is {size(most)} at most"
            )
            check.say(f"{size(sent)} sent")
        with state.checks.check("  restored whole", server) as check:
            target = state.place / f"out-{way.replace(' ', '-')}"
            check.restore(target)
            state.compare(target, "third")


def durable_bytes(check: Check, *, thin: bool) -> int:
    """What the server had of an upload when its client was killed: chunks that were accepted, or (thin) the durable point."""
    if not thin:
        return check.server.received_bytes()
    (upload,) = {call["upload"] for call in check.server.calls("BeginUpload")}
    argv = [sys.executable, "-m", "benchmarks.programs.generated_client", "durable", upload]
    return int(run(argv, env=check.server.environment).checked().out)


def most_left(state: State, kept: int, *, thin: bool) -> int:
    """The most that may be sent after a kill."""
    if thin:
        return int(state.full["data_bytes"]) - kept + STRETCHES * MIB
    return int(state.full["sent_bytes"]) - kept + UNDER_WAY_BYTES


def backups(check: Check) -> list[str]:
    """The lines of `staddle list`, without its summary."""
    found = run(staddle("list", DATASET), env=check.server.environment).checked()
    return [line for line in found.out.splitlines() if '"summary"' not in line]


def check_server_killed(state: State) -> None:
    """The server is killed in the middle and started again, while the client tries on."""
    with state.server("killed") as server:
        with state.checks.check("server: a backup before the kill", server) as check:
            check.backup(state.source / data.ODD, dataset="before")
        with state.checks.check("server: killed in the middle, started again", server) as check:
            command = staddle("backup", state.source, "--dataset", DATASET, "--retry", "5m")
            with Program(command, env=server.environment) as program:
                check.expect(program.watch(in_the_middle(state, server)), "the client had ended before")
                server.kill()
                had = server.received_bytes()
                server.start()
                report = check.note(program.wait()).checked().summary
            check.expect(report["complete"], "paths were left out")
            twice = server.received_bytes() - int(state.full["sent_bytes"])
            check.expect(had > state.lost_bytes_max, f"only {size(had)} received: too little to decide")
            check.expect(
                twice <= state.lost_bytes_max,
                f"{size(twice)} were sent twice, and {size(state.lost_bytes_max)} at most were not durable",
            )
            check.say(f"{size(had)} had come; {size(max(0, twice))} sent twice")
        with state.checks.check("  restored whole", server) as check:
            check.restore(state.place / "out-server")
            state.compare(state.place / "out-server", "third")
        with state.checks.check("  the backup before it, restored", server) as check:
            target = state.place / "out-before" / data.ODD
            target.parent.mkdir()
            check.restore(target, dataset="before")
            state.compare(target.parent, "third", listing.below(data.ODD))


# --- a million


def check_listing(state: State) -> None:
    """Very many entries, made by the generated code and listed by the command."""
    count = state.sizes.entries
    with state.server("listing") as server:
        with state.checks.check(f"a thin stream of {count:,} entries", server) as check:
            made = check.run(
                [sys.executable, "-m", "benchmarks.programs.generated_client", "fill", "many", str(count)]
            )
            check.say(f"the backup has {int(made.out):,}")
        with state.checks.check(f"a listing of {count:,} entries", server) as check:
            shown = state.place / "shown"
            with (
                shown.open("wb") as out,
                Program(staddle("ls", "many", "-R")[:-1], env=server.environment, out=out) as program,
            ):
                check.note(program.wait()).checked()
            with shown.open() as lines:
                for number, (expected, line) in enumerate(zip_longest(generated_client.listed(count), lines)):
                    if expected is None:
                        check.expect(line.startswith(f"{number:,} entries"), f"too much was listed: {line!r}")
                        break
                    check.expect(line == expected + "\n", f"line {number} is {line!r}, not {expected!r}")
            check.say("every line is right")
        with state.checks.check("one directory of it", server) as check:
            found = check.run(staddle("ls", "many", "d000001")).out.splitlines()
            check.expect(
                len(found) == generated_client.FILES_PER_DIRECTORY + 1, f"it has {len(found) - 1} entries"
            )


# --- all of it


def parsed(arguments: Sequence[str] | None) -> tuple[Sizes, Path | None, bool]:
    parser = argparse.ArgumentParser(prog="make big", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--small", action="store_true", help="a quick try: 400 files, one of 320 MiB, 20,000 entries"
    )
    parser.add_argument("--files", type=int, help="files of the tree (100,000)")
    parser.add_argument(
        "--file-mib",
        type=int,
        help="size of the large file (2,048); at least 320, or nothing is left to kill",
    )
    parser.add_argument("--entries", type=int, help="entries of the listing (1,000,000)")
    parser.add_argument("--work", type=Path, help="where to work (the directory for temporary files)")
    parser.add_argument("--keep", action="store_true", help="do not remove what was made")
    given = parser.parse_args(arguments)
    usual = SMALL if given.small else Sizes()
    sizes = Sizes(
        given.files or usual.files,
        given.file_mib * MIB if given.file_mib else usual.image_bytes,
        given.entries or usual.entries,
    )
    return sizes, given.work, given.keep


def main(arguments: Sequence[str] | None = None) -> int:
    sizes, work, keep = parsed(arguments)
    place = Path(tempfile.mkdtemp(prefix="staddle-big-", dir=work))
    try:
        free_bytes = shutil.disk_usage(place).free
        if free_bytes < sizes.disk_bytes:
            print(
                f"This needs {size(sizes.disk_bytes)} of disk, and {place} has {size(free_bytes)}; --work DIR names another place."
            )
            return 1
        return run_all(State(place, sizes))
    finally:
        if keep:
            print(f"Kept: {place}")
        else:
            shutil.rmtree(place)


def run_all(state: State) -> int:
    begun_s = time.monotonic()
    for name, words in machine.describe(state.place).items():
        print(f"{name:>12}: {words}")
    print(f"{'limits':>12}: client and server at most {MEMORY_BYTES_MAX // MIB} MiB each\n")
    summed = make_source(state)
    check_kinds(state, summed)
    if state.full:
        check_client_killed(state)
        check_client_killed(state, "--thin")
        check_server_killed(state)
    check_listing(state)
    checks = state.checks
    print(f"\n{checks.passed} passed, {checks.failed} failed, in {time.monotonic() - begun_s:.0f} s")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
