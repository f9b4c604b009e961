"""Servers that share a PostgreSQL database keep valid tokens for a moment, and tell each other what was revoked."""

import os
import time

import pytest
from databases import DATABASES
from sqlalchemy import text, update
from staddle_server.base import errors
from staddle_server.base.limits import TOKENS_REMEMBERED_MAX
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Principal, open_catalog
from staddle_server.catalog.known_tokens import REMEMBERED_S, FoundToken, KnownTokens
from staddle_server.catalog.schema import tokens
from staddle_server.catalog.tokens import Tokens

NEVER_S = 60.0


@pytest.fixture
def databases():
    """The tests of this module are about PostgreSQL."""
    return DATABASES["postgresql"]


class Server:
    """A server's tokens, with a steady clock that stands still."""

    def __init__(self, catalog):
        self.catalog, self.now_s = catalog, 100.0
        self.tokens = Tokens(catalog.database, catalog.tenants, os.urandom, lambda: self.now_s)

    def admits(self, token, now_ns):
        try:
            self.tokens.authenticate(token, now_ns)
        except errors.Unauthenticated:
            return False
        return True


@pytest.fixture
def server(world):
    return Server(world.catalog)


@pytest.fixture
def other(world):
    catalog = open_catalog(world.url)
    yield Server(catalog)
    catalog.close()


@pytest.fixture
def token(world):
    return world.catalog.tokens.create(world.tenant, "web1", TokenRole.READER, world.now)


def _revoked_behind_its_back(world):
    """What a lost notice leaves: the token is revoked in the database, and no server knows."""
    with world.catalog.database.write() as connection:
        connection.execute(update(tokens).where(tokens.c.name == "web1").values(revoked_ns=world.now))


def _listeners(world):
    with world.catalog.database.look_up() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        return list(connection.execute(text(query)).scalars())


def _in_time(happened):
    end_s = time.monotonic() + NEVER_S
    while not happened():
        assert time.monotonic() < end_s
    return True


def test_a_token_is_looked_up_once_in_five_seconds(world, server, token):
    found = server.tokens.authenticate(token, world.now)
    _revoked_behind_its_back(world)
    server.now_s += REMEMBERED_S - 0.1
    assert server.tokens.authenticate(token, world.now) == found


def test_a_lost_notice_of_a_revocation_costs_five_seconds(world, server, token):
    assert server.admits(token, world.now)
    _revoked_behind_its_back(world)
    server.now_s += REMEMBERED_S
    assert not server.admits(token, world.now)


def test_a_revocation_holds_at_once_in_its_process(world, server, token):
    assert server.admits(token, world.now)
    server.tokens.revoke(world.tenant, "web1", world.now)
    assert not server.admits(token, world.now)


def test_other_servers_are_told_of_a_revocation(world, server, other, token):
    kept = world.catalog.tokens.create(world.tenant, "web2", TokenRole.READER, world.now)
    assert server.admits(token, world.now)
    assert server.admits(kept, world.now)
    other.tokens.revoke(world.tenant, "web1", world.now)
    assert _in_time(lambda: not server.admits(token, world.now))
    assert server.admits(kept, world.now)


def test_a_revocation_that_is_rolled_back_is_not_told(world, server, token):
    assert server.admits(token, world.now)
    with pytest.raises(errors.BadRequest):
        server.tokens.revoke(world.tenant, "no-such-token", world.now)
    assert server.admits(token, world.now)


def test_a_known_token_ends_when_it_expires(world, server):
    token = world.catalog.tokens.create(world.tenant, "web3", TokenRole.READER, world.now, world.now + 10)
    assert server.admits(token, world.now)
    assert not server.admits(token, world.now + 10)


def test_after_the_connection_for_notices_broke_every_token_is_looked_up_again(world, server, token):
    assert server.admits(token, world.now)
    (listener,) = _listeners(world)
    _revoked_behind_its_back(world)
    with world.catalog.database.look_up() as connection:
        connection.execute(text(f"SELECT pg_terminate_backend({listener})"))
    assert _in_time(lambda: not server.admits(token, world.now))


def test_the_connection_for_notices_is_made_again(world, server, other, token):
    assert server.admits(token, world.now)
    (listener,) = _listeners(world)
    with world.catalog.database.look_up() as connection:
        connection.execute(text(f"SELECT pg_terminate_backend({listener})"))

    def again() -> bool:
        server.now_s += REMEMBERED_S
        return server.admits(token, world.now) and bool(set(_listeners(world)) - {listener})

    assert _in_time(again)
    other.tokens.revoke(world.tenant, "web1", world.now)
    assert _in_time(lambda: not server.admits(token, world.now))


def test_what_is_revoked_during_its_search_is_not_kept(world, server, other, token):
    known = KnownTokens(world.catalog.database, lambda: 0.0)
    found = FoundToken(server.tokens.authenticate(token, world.now), None)

    def find() -> FoundToken:
        known.forget(found.principal.token)
        return found

    assert known.look_up(b"key", find) == found
    assert known.look_up(b"key", lambda: None) is None


def test_unknown_tokens_take_no_room_and_too_many_known_ones_push_out_the_oldest(world):
    known = KnownTokens(world.catalog.database, lambda: 0.0)

    def found(number: int) -> FoundToken:
        return FoundToken(Principal(bytes(16), number.to_bytes(16), "web", TokenRole.READER), None)

    for number in range(TOKENS_REMEMBERED_MAX):
        known.look_up(b"valid %d" % number, lambda number=number: found(number))
        assert known.look_up(b"unknown %d" % number, lambda: None) is None
    assert known.look_up(b"valid 0", lambda: None) == found(0)
    known.look_up(b"one more", lambda: found(TOKENS_REMEMBERED_MAX))
    assert known.look_up(b"valid 1", lambda: None) == found(1)
    assert known.look_up(b"valid 0", lambda: None) is None


def test_in_a_file_a_revocation_by_another_process_holds_at_once(tmp_path):
    here, there = (open_catalog(str(tmp_path / "catalog.db")) for _ in range(2))
    here.tenants.create(bytes(16), "one", 1, record=b"made")
    token = here.tokens.create(bytes(16), "web1", TokenRole.READER, 1)
    server = Server(here)
    assert server.admits(token, 2)
    there.tokens.revoke(bytes(16), "web1", 2)
    assert not server.admits(token, 2)
    here.close()
    there.close()
