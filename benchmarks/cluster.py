"""`make bench-cluster`: one, two and three servers on PostgreSQL and an S3 store, against what these two give by themselves.

Everything runs on this machine, so servers, clients, database and store share its cores; the store is SeaweedFS in one process, without
copies. What the store and the database give raw is measured in the same run. Needs PostgreSQL and SeaweedFS as the tests do.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import obstore
import postgres_server
import psycopg
import seaweed
from balancer import Balancer
from obstore.store import S3Store
from postgres_server import PostgresServer
from round_trips import RoundTrips
from staddle_server.store.keys import create_master_key

from benchmarks.data import corpora
from benchmarks.programs import machine
from benchmarks.programs.processes import MIB, Program, ProgramError, Server, run, staddle
from benchmarks.tables import sections

KIND: Final = "cluster"
COUNTS: Final = (1, 2, 3)
UPLOADS: Final = 3
PACK_BYTES: Final = 64 * MIB
"""Of a raw put: what a server puts."""
FILES: Final = 2_000
"""In the tree of small backups."""
SMALL_BACKUPS: Final = 10
COMMITS: Final = 300
ROWS: Final = 100_000
NOTHING_BY_ITSELF: Final = (
    "--gc-every",
    "0",
    "--scrub-period",
    "0",
    "--retention-every",
    "0",
    "--drill-period",
    "0",
)
LARGE_HEAD: Final = ["servers", "wall s", "MiB/s", "of the raw store", "servers' CPU s", "clients' CPU s"]
SMALL_HEAD: Final = ["servers", "ms a backup", "server CPU ms", "round trips"]
WAY_HEAD: Final = ["way to three servers", "MiB/s", "server CPU s"]


class Site:
    """Servers that share a new database and a new prefix of the bucket."""

    def __init__(
        self, place: Path, count: int, database: PostgresServer, store: seaweed.S3Server, running: ExitStack,
        *options: str,
    ) -> None:  # fmt: skip
        place.mkdir()
        create_master_key(str(place / "key"))
        self.trips = RoundTrips(database.place)
        running.callback(self.trips.close)
        catalog = f"postgresql://{postgres_server.USER}@/{database.new_database()}?host={self.trips.place}"
        shared = (
            "--catalog",
            catalog,
            "--store",
            store.url(uuid.uuid4().hex),
            "--master-key",
            str(place / "key"),
        )
        self.servers = [
            running.enter_context(
                Server(place / f"server-{number}", options=(*NOTHING_BY_ITSELF, *shared, *options))
            )
            for number in range(count)
        ]
        self._token = tomllib.loads((place / "server-0" / "client.toml").read_text())["token"]
        self._cache = place / "cache"

    def environment(self, *addresses: str) -> dict[str, str]:
        """What a client needs to find the servers, or what stands before them."""
        found = ",".join(addresses or [each.address for each in self.servers])
        return {
            "STADDLE_CONFIG": os.devnull,
            "STADDLE_SERVER": found,
            "STADDLE_TOKEN": self._token,
            "STADDLE_CACHE_DIR": str(self._cache),
        }

    @property
    def cpu_s(self) -> float:
        return sum(server.cpu_s for server in self.servers)


# --- what is measured


def raw_store(store: seaweed.S3Server, size: int) -> float:
    """Objects of a pack's size put side by side, as a server does: bytes a second."""
    bucket = S3Store(
        seaweed.BUCKET, endpoint=store.endpoint, client_options={"allow_http": True, "timeout": "120s"}
    )
    data = [os.urandom(PACK_BYTES) for _ in range(2)]
    names = [f"raw/{number}" for number in range(max(2, size // PACK_BYTES))]

    def put(name: str) -> None:
        obstore.put(bucket, name, data[len(name) % 2], use_multipart=False)

    begun_s = time.monotonic()
    with ThreadPoolExecutor(UPLOADS) as threads:
        list(threads.map(put, names))
    seconds = time.monotonic() - begun_s
    obstore.delete(bucket, names)
    return len(names) * PACK_BYTES / seconds


def raw_database(database: PostgresServer) -> dict[str, float]:
    """Durable commits a second on one connection, and rows a second by COPY."""
    with psycopg.connect(database.url(database.new_database()), autocommit=True) as connection:
        connection.execute("CREATE TABLE probe (id bytea PRIMARY KEY, place bigint)")
        begun_s = time.monotonic()
        for number in range(COMMITS):
            connection.execute("INSERT INTO probe VALUES (%s, %s)", (os.urandom(16), number))
        commits = COMMITS / (time.monotonic() - begun_s)
        rows = [(os.urandom(16), number) for number in range(ROWS)]
        begun_s = time.monotonic()
        with connection.cursor() as cursor, cursor.copy("COPY probe FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        return {"commits": commits, "rows": ROWS / (time.monotonic() - begun_s)}


def large(site: Site, sources: Sequence[Path], *addresses: str) -> dict[str, float]:
    """All sources at once, each by its own client, which are dealt out to the servers, or go to one address."""
    before_s, begun_s = site.cpu_s, time.monotonic()
    with ExitStack() as stack:
        programs = [
            stack.enter_context(
                Program(
                    staddle("backup", source, "--dataset", source.name),
                    env=site.environment(*(addresses or [site.servers[number % len(site.servers)].address])),
                )
            )
            for number, source in enumerate(sources)
        ]
        clients_cpu_s = sum(program.wait().checked().cpu_s for program in programs)
    return {
        "seconds": time.monotonic() - begun_s,
        "servers_cpu_s": site.cpu_s - before_s,
        "clients_cpu_s": clients_cpu_s,
    }


def small(site: Site, tree: Path) -> dict[str, float]:
    """Incrementals with ten changes, one after the other: medians, and round trips with the database of one backup."""
    command = staddle("backup", tree, "--dataset", "tree")
    run(command, env=site.environment()).checked()
    seconds, trips, before_s = [], [], site.cpu_s
    for number in range(SMALL_BACKUPS):
        corpora.change_ten(tree, f"small {number}")
        before, begun_s = site.trips.count, time.monotonic()
        run(command, env=site.environment()).checked()
        seconds.append(time.monotonic() - begun_s)
        trips.append(site.trips.count - before)
    return {
        "seconds": statistics.median(seconds),
        "trips": statistics.median(trips),
        "servers_cpu_s": (site.cpu_s - before_s) / SMALL_BACKUPS,
    }


def restores(site: Site, source: Path, target: Path) -> list[float]:
    """The seconds of a first restore, which fills the cache, and of a second one."""
    found = []
    for _ in range(2):
        begun_s = time.monotonic()
        run(staddle("restore", source.name, "--target", target), env=site.environment()).checked()
        found.append(time.monotonic() - begun_s)
        if (target / "image").read_bytes() != (source / "image").read_bytes():
            raise ProgramError("the restored image is another one")
        shutil.rmtree(target)
    return found


@contextmanager
def balanced(site: Site, way: str) -> Iterator[tuple[str, ...]]:
    """The address that leads to all servers in this way. A balancer here takes processor time, too."""
    if way == "addresses of all in the client":
        yield tuple(each.address for each in site.servers)
        return
    servers = site.servers[:1] if way == "balancer before one server" else site.servers
    made = Balancer([each.address for each in servers], by_upload=way == "balancer that hashes the upload")
    try:
        yield (made.address,)
    finally:
        made.stop()


WAYS: Final = (
    "addresses of all in the client",
    "balancer before one server",
    "balancer that hashes the upload",
    "balancer that deals calls out",
)


def measure(
    place: Path, size: int, rounds: int, counts: Sequence[int], say: Callable[[str], None]
) -> dict[str, Any]:
    """Everything. Raises ProgramError."""
    with ExitStack() as running:
        patched = dict(os.environ)
        running.callback(lambda: (os.environ.clear(), os.environ.update(patched)))
        os.environ.update(seaweed.ENVIRONMENT)
        database = PostgresServer(durable=True)
        running.callback(database.remove)
        (place / "store").mkdir()
        store = running.enter_context(seaweed.running(place / "store"))
        sources = [place / f"source-{number}" for number in range(UPLOADS)]
        for number, source in enumerate(sources):
            source.mkdir()
            corpora.make_blocks(source / "image", size // UPLOADS, f"cluster {number}")
            machine.read_once(source)
        tree = place / "tree"
        corpora.make_many(tree, FILES, "cluster")
        found: dict[str, Any] = {"rounds": [], "ways": []}
        for number in range(rounds):
            this: dict[str, Any] = {"store": raw_store(store, size), "database": raw_database(database)}
            say(
                f"raw store {this['store'] / MIB:.0f} MiB/s; database {this['database']['commits']:.0f} commits/s"
            )
            for count in counts:
                with ExitStack() as serving:
                    site = Site(place / f"{number}-{count}", count, database, store, serving)
                    this[str(count)] = {"large": large(site, sources), "small": small(site, tree)}
                say(f"servers: {count}; {this[str(count)]['large']['seconds']:.2f} s")
            found["rounds"].append(this)
        for way in WAYS:
            with ExitStack() as serving:
                site = Site(place / f"way-{WAYS.index(way)}", 3, database, store, serving)
                with balanced(site, way) as addresses:
                    found["ways"].append({"way": way, **large(site, sources, *addresses)})
            say(f"{way}: {found['ways'][-1]['seconds']:.2f} s")
        with ExitStack() as serving:
            site = Site(place / "cached", 1, database, store, serving, "--cache", "4GiB")
            large(site, sources)
            found["restores"] = restores(site, sources[0], place / "target")
    return found


# --- what comes of it


def median(record: Mapping[str, Any], count: int, kind: str, name: str) -> float:
    return statistics.median(each[str(count)][kind][name] for each in record["rounds"])


def large_rows(record: Mapping[str, Any]) -> list[list[str]]:
    raw = statistics.median(each["store"] for each in record["rounds"])
    rows = []
    for count in record["counts"]:
        seconds = median(record, count, "large", "seconds")
        rate = record["data_bytes"] / seconds
        rows.append(
            [
                str(count),
                f"{seconds:.2f}",
                f"{rate / MIB:,.0f}",
                f"{100 * rate / raw:.0f} %",
                f"{median(record, count, 'large', 'servers_cpu_s'):.2f}",
                f"{median(record, count, 'large', 'clients_cpu_s'):.2f}",
            ]
        )
    return rows


def small_rows(record: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            str(count),
            f"{1000 * median(record, count, 'small', 'seconds'):.0f}",
            f"{1000 * median(record, count, 'small', 'servers_cpu_s'):.0f}",
            f"{median(record, count, 'small', 'trips'):.0f}",
        ]
        for count in record["counts"]
    ]


def text(record: Mapping[str, Any]) -> str:
    """The tables, in columns."""
    mib = record["data_bytes"] / MIB
    raw = statistics.median(each["store"] for each in record["rounds"])
    commits, rows = (
        statistics.median(each["database"][name] for each in record["rounds"]) for name in ("commits", "rows")
    )
    ways = [
        [each["way"], f"{mib / each['seconds']:,.0f}", f"{each['servers_cpu_s']:.2f}"]
        for each in record["ways"]
    ]
    first, second = record["restores"]
    parts = (
        f"Raw: the store takes {raw / MIB:,.0f} MiB/s; the database {commits:,.0f} commits/s, {rows:,.0f} rows/s",
        f"\n{UPLOADS} first backups at once, {mib:,.0f} MiB in all",
        sections.in_columns(LARGE_HEAD, large_rows(record)),
        f"\nIncrementals with ten changes of {FILES:,} files, one after the other",
        sections.in_columns(SMALL_HEAD, small_rows(record)),
        "\nThe same first backups, by the way to the servers",
        sections.in_columns(WAY_HEAD, ways),
        f"\nRestore of {mib / UPLOADS:,.0f} MiB: {first:.2f} s, and {second:.2f} s from the server's cache",
    )
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench-cluster", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--count", type=int, action="append", help="so many servers; repeatable (1, 2, 3)")
    add("--mib", type=int, default=768, help="data of all large uploads together (%(default)s)")
    add("--rounds", type=int, default=3, help="how often everything is measured (%(default)s)")
    add("--work", type=Path, help="where to work (the directory for temporary files)")
    given = parser.parse_args(arguments)
    counts = list(dict.fromkeys(given.count or COUNTS))
    if min(counts) < 1 or given.rounds < 1 or given.mib < UPLOADS:
        parser.error(f"there is at least one server, one round, and a MiB for each of {UPLOADS} uploads")
    if postgres_server.programs() is None or seaweed.program() is None:
        parser.error(
            f"PostgreSQL ({postgres_server.INSTALL}) and SeaweedFS (weed, in the group dev) are needed"
        )
    place = Path(tempfile.mkdtemp(prefix="staddle-cluster-", dir=given.work))
    try:
        facts = machine.describe(place)
        found = measure(
            place, given.mib * MIB, given.rounds, counts, lambda line: print(f"  {line}", flush=True)
        )
    except ProgramError as error:
        sys.exit(f"Nothing was measured: {error}")
    finally:
        shutil.rmtree(place)
    record = {"data_bytes": given.mib // UPLOADS * UPLOADS * MIB, "counts": counts, **found}
    print(f"\n{text(record)}")
    print(f"All figures: {sections.save(KIND, {'machine': facts, **record})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
