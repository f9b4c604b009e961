"""The list of servers: who lives, by the database's clock."""

from __future__ import annotations

import time

from sqlalchemy import update
from staddle_server.catalog import Catalog, Server, ServerIdentity, Terms
from staddle_server.catalog.schema import servers
from staddle_server.catalog.servers import DEAD_NS, FORGOTTEN_NS
from staddle_server.catalog.tasks import Period


def _identity(number: int, place: str = "", endpoint: str = "") -> ServerIdentity:
    return ServerIdentity(
        bytes([number]) * 16,
        place,
        f"host{number}",
        endpoint or f"host{number}:7443",
        "1.0",
        f"process {number} on host{number}",
    )


ONE, TWO = _identity(1), _identity(2)


def _age(catalog: Catalog, server: ServerIdentity, by_ns: int) -> None:
    """Let this time pass for one server; negative: as if the database's clock had been ahead."""
    with catalog.database.write() as connection:
        older = update(servers).where(servers.c.id == server.id)
        connection.execute(older.values(beat_ns=servers.c.beat_ns - by_ns))


def _listed(catalog: Catalog) -> dict[ServerIdentity, Server]:
    return {server.identity: server for server in catalog.servers.list_all()}


def test_a_server_lives_while_it_beats_and_is_dead_when_it_does_not(world):
    catalog = world.catalog
    catalog.servers.beat(ONE, draining=False)
    catalog.servers.beat(TWO, draining=False)
    assert [server.identity for server in catalog.servers.list_all()] == [ONE, TWO]
    assert all(server.alive and not server.draining for server in catalog.servers.list_all())
    _age(catalog, ONE, DEAD_NS + 10**9)
    assert [server.alive for server in catalog.servers.list_all()] == [False, True]
    started_ns = _listed(catalog)[ONE].started_ns
    catalog.servers.beat(ONE, draining=False)
    assert _listed(catalog)[ONE].alive
    assert _listed(catalog)[ONE].started_ns == started_ns
    catalog.servers.remove(ONE.id)
    assert list(_listed(catalog)) == [TWO]


def test_a_heartbeat_far_in_the_future_is_none(world):
    world.catalog.servers.beat(ONE, draining=False)
    _age(world.catalog, ONE, -3600 * 10**9)
    assert not _listed(world.catalog)[ONE].alive


def test_a_server_that_has_been_dead_for_a_day_is_forgotten_at_the_next_heartbeat(world):
    catalog = world.catalog
    for server in (ONE, TWO):
        catalog.servers.beat(server, draining=False)
    _age(catalog, ONE, FORGOTTEN_NS - 10**10)
    catalog.servers.beat(TWO, draining=False)
    assert set(_listed(catalog)) == {ONE, TWO}
    _age(catalog, ONE, 2 * 10**10)
    catalog.servers.beat(TWO, draining=False)
    assert set(_listed(catalog)) == {TWO}
    catalog.servers.beat(ONE, draining=True)
    assert _listed(catalog)[ONE].draining


def test_a_server_replaces_the_earlier_one_on_its_data_directory_and_no_other(world):
    catalog = world.catalog
    for server in (_identity(1, "here"), _identity(2, "there"), _identity(3)):
        catalog.servers.beat(server, draining=False)
    catalog.servers.beat(_identity(4, "here"), draining=False)
    catalog.servers.beat(_identity(5), draining=False)
    assert {server.name for server in _listed(catalog)} == {"host2", "host3", "host4", "host5"}


def test_writes_go_to_another_server_only_while_it_lives_works_and_is_elsewhere(world):
    catalog = world.catalog
    here = ONE.id

    def elsewhere(owner: ServerIdentity) -> ServerIdentity | None:
        found = catalog.servers.writing_elsewhere(owner.id, here)
        return found and found.identity

    assert elsewhere(TWO) is None  # unknown
    catalog.servers.beat(ONE, draining=False)
    catalog.servers.beat(TWO, draining=False)
    assert elsewhere(TWO) == TWO
    assert elsewhere(ONE) is None
    assert catalog.servers.writing_elsewhere(b"", here) is None
    catalog.servers.beat(TWO, draining=True)
    assert elsewhere(TWO) is None
    catalog.servers.beat(TWO, draining=False)
    _age(catalog, TWO, DEAD_NS + 10**9)
    assert elsewhere(TWO) is None
    same = _identity(3, endpoint=ONE.endpoint)
    catalog.servers.beat(same, draining=False)
    assert elsewhere(same) is None


def test_an_upload_names_the_server_that_begins_resumes_or_takes_it_over(world):
    begun = world.begin(server=ONE.id, fingerprint="f")
    assert begun.upload.server == ONE.id
    resumed = world.catalog.uploads.resume(
        world.tenant, begun.upload.id, world.ann, world.now, Terms(300, 7 * 24 * 3600), server=TWO.id
    )
    assert (resumed.server, resumed.epoch) == (TWO.id, 2)
    taken = world.begin(server=ONE.id, fingerprint="f", take_over=True)
    assert (taken.taken_over, taken.upload.server, taken.upload.epoch) == (True, ONE.id, 3)
    standing = world.catalog.uploads.standing([begun.upload.id, b"\1" * 16])
    assert standing == {begun.upload.id: (begun.upload.state, 3)}


def test_what_each_server_does_is_listed_with_it(world):
    catalog = world.catalog
    for server in (ONE, TWO):
        catalog.servers.beat(server, draining=False)
    for number in range(2):
        world.begin(dataset=f"{number}", server=ONE.id)
    assert catalog.servers.working() == ({ONE.id: 2}, {})
    now_ns = time.time_ns()
    for task in ("scrub", "retention"):
        assert catalog.tasks.claim(task, TWO.process, now_ns, 60.0, Period(3600.0, 3600.0))
    fence = catalog.tasks.claim("over", ONE.process, now_ns, 60.0, Period(3600.0, 3600.0))
    assert catalog.tasks.end("over", fence, now_ns, "done")
    assert catalog.tasks.claim("lost", ONE.process, now_ns, 0.0, Period(3600.0, 3600.0))
    assert catalog.servers.working() == ({ONE.id: 2}, {TWO.process: ["retention", "scrub"]})
