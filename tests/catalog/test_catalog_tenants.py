"""Tenants and tokens."""

import pytest
from staddle_server.base import errors
from staddle_server.base.types import TokenRole


def test_a_tenant_is_found_by_id_and_by_name(world):
    made = world.catalog.tenants.create(
        world.id(), "a-z_0.9", 5, record=b"made", keys_version=3, wrapped_keys=b"sealed"
    )
    assert world.catalog.tenants.get(made.id) == made
    assert world.catalog.tenants.get_by_name("a-z_0.9") == made
    assert (made.keys_version, made.wrapped_keys, made.created_ns) == (3, b"sealed", 5)
    assert world.catalog.tenants.get(world.id()) is None
    assert world.catalog.tenants.get_by_name("nobody") is None


@pytest.mark.parametrize("name", ["", "A", "a b", "a/b", "x" * 65, "ä", "a\n"])
def test_a_tenant_with_a_bad_name_is_refused(world, name):
    with pytest.raises(errors.BadRequest) as caught:
        world.catalog.tenants.create(world.id(), name, 1, record=b"made")
    assert caught.value.facts == {"field": "name"}


def test_the_name_of_a_tenant_is_unique(world):
    with pytest.raises(errors.BadRequest, match="already"):
        world.catalog.tenants.create(world.id(), "one", 1, record=b"made")


def test_newer_keys_replace_older_ones_and_older_ones_replace_none(world):
    world.catalog.tenants.set_keys(world.tenant, 3, b"three")
    world.catalog.tenants.set_keys(world.tenant, 2, b"two")
    kept = world.catalog.tenants.get(world.tenant)
    assert (kept.keys_version, kept.wrapped_keys) == (3, b"three")


def test_a_tenants_record_is_pending_until_it_is_durable(world):
    def pending():
        return {record.tenant for record in world.catalog.backups.pending_records()}

    assert pending() == {world.tenant, world.eve.tenant}
    world.catalog.backups.mark_records_written(world.tenant, [world.tenant])
    assert pending() == {world.eve.tenant}


def test_a_call_for_an_unknown_tenant_is_a_fault(world):
    with pytest.raises(errors.Fault):
        world.catalog.tokens.list_all(world.id())


def test_a_token_identifies_its_caller_and_only_its_hash_is_stored(world):
    token = world.catalog.tokens.create(world.tenant, "ci", TokenRole.READER, 7)
    who = world.catalog.tokens.authenticate(token, 8)
    assert (who.tenant, who.name, who.role) == (world.tenant, "ci", TokenRole.READER)
    assert token.startswith("staddle_")
    assert token.removeprefix("staddle_") not in repr(world.rows())


@pytest.mark.parametrize(
    "token", ["", "staddle_", "staddle_" + "A" * 43, "A" * 51, "staddle_" + "A" * 100_000, "\ud800" * 51]
)
def test_an_unknown_token_is_refused(world, token):
    with pytest.raises(errors.Unauthenticated):
        world.catalog.tokens.authenticate(token, 1)


def test_a_token_ends_at_its_expiry(world):
    token = world.catalog.tokens.create(world.tenant, "short", TokenRole.ADMIN, 0, expires_ns=100)
    assert world.catalog.tokens.authenticate(token, 99).name == "short"
    with pytest.raises(errors.Unauthenticated):
        world.catalog.tokens.authenticate(token, 100)


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_revoked_token_is_refused_and_its_name_is_free_again(world, by):
    token = world.catalog.tokens.create(world.tenant, "ci", TokenRole.WRITER, 1)
    who = world.catalog.tokens.authenticate(token, 1)
    revoked = world.catalog.tokens.revoke(world.tenant, "ci" if by == "name" else who.token.hex(), 9)
    assert (revoked.id, revoked.revoked_ns) == (who.token, 9)
    with pytest.raises(errors.Unauthenticated):
        world.catalog.tokens.authenticate(token, 10)
    world.catalog.tokens.create(world.tenant, "ci", TokenRole.WRITER, 11)
    assert [entry.name for entry in world.catalog.tokens.list_all(world.tenant)].count("ci") == 2


def test_the_tokens_of_a_tenant_have_distinct_names(world):
    with pytest.raises(errors.BadRequest, match="already"):
        world.catalog.tokens.create(world.tenant, "ann", TokenRole.ADMIN, 1)


def test_a_session_lasts_until_one_of_its_count_is_ended(world):
    tokens, ann, bob = world.catalog.tokens, world.ann.token, world.bob.token
    assert (tokens.logouts(ann), tokens.of_session(ann, 0, world.now)) == (0, world.ann)
    for _ in range(2):  # two people of one count log out: sessions that began in between stay
        tokens.end_sessions(ann, 0)
        assert (tokens.logouts(ann), tokens.of_session(ann, 1, world.now)) == (1, world.ann)
    tokens.end_sessions(ann, 1)
    for count in (0, 1, 3):
        with pytest.raises(errors.Unauthenticated):
            tokens.of_session(ann, count, world.now)
    assert (tokens.logouts(ann), tokens.logouts(bob)) == (2, 0)
    assert tokens.of_session(bob, 0, world.now) == world.bob
    with pytest.raises(errors.Unauthenticated):
        tokens.logouts(b"\0" * 16)


def test_another_tenants_token_cannot_be_revoked_or_seen(world):
    for name in ("eve", world.eve.token.hex()):
        with pytest.raises(errors.BadRequest):
            world.catalog.tokens.revoke(world.tenant, name, 1)
    assert {token.name for token in world.catalog.tokens.list_all(world.tenant)} == {"ann", "bob"}
    assert {token.name for token in world.catalog.tokens.list_all(world.eve.tenant)} == {"eve"}


def test_objects_without_a_row_are_noted_below_their_prefix(world):
    fence = world.catalog.gc_lease.acquire("a test", world.now, 60)
    sizes = {"packs/a": 1, "packs/b": 2, "packs0": 3, "packs-more/c": 4, "parity/a": 5}
    world.catalog.purge.note_orphans(fence, sizes, world.now)
    world.catalog.purge.note_orphans(fence, {"packs/a": 1}, world.now + 1)
    found = world.catalog.purge.orphans("packs")
    assert {name: each.seen_ns for name, each in found.items()} == dict.fromkeys(
        ("packs/a", "packs/b"), world.now
    )
    world.catalog.purge.drop_orphans(fence, ["packs/a"])
    assert list(world.catalog.purge.orphans("packs")) == ["packs/b"]
