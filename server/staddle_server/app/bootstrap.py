"""Open the store and the catalog of one data directory: the common start of serving and administration.

Only this module and the rest of `app` name concrete classes; all other packages know only each other's
protocols.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from staddle._base.figures import counted

from staddle_server.app import generation
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.given_key import given_master_key
from staddle_server.app.settings import OperatorError
from staddle_server.app.store_place import DataDirectoryError
from staddle_server.base.clock import SystemClock
from staddle_server.base.errors import BadRequest, Damaged
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Catalog, TenantRow, Token, open_catalog
from staddle_server.catalog.validation import check_name
from staddle_server.store.blobs import BlobMissing, Blobs, check_format, create_format
from staddle_server.store.files import Files, sync_directory
from staddle_server.store.keys import (
    KeyStore,
    WrongMasterKey,
    clear_master_key_temporary,
    create_master_key,
    keys_name,
    load_master_key,
    save_master_key,
)
from staddle_server.store.records import TenantRecord, TenantSettingsRecord, encode_record
from staddle_server.tenancy.clock_guard import ClockGuard, Standing
from staddle_server.tenancy.records import as_noted, as_pending, finish_all, finish_missing
from staddle_server.tenancy.tenant import Tenants, keys_damage
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.rebuild.catalog_age import records_unknown, tenants_unknown
from staddle_server.upkeep.rebuild.run import Rebuilding, RebuildReport, Show

DEFAULT_TENANT: Final = "default"
LOCAL_TOKEN: Final = "local"  # noqa: S105  the name of a token, not a token
KEYS_FIRST: Final = 1


@dataclass(frozen=True)
class Rooms:
    """The lower packages' objects of a server."""

    blobs: Blobs
    keys: KeyStore
    catalog: Catalog
    looked: generation.Looked | None = None
    """How store and catalog compared when they were opened; None if they were not compared."""

    def tenants(self) -> Tenants:
        """Return what opens tenants by their keys."""
        return Tenants(self.blobs, self.catalog, self.keys)

    def kept(self) -> Kept:
        """Return what is checked and repaired."""
        return Kept(self.catalog, self.blobs, self.keys, self.tenants(), SystemClock())


class NoSuchTenantError(OperatorError):
    """No tenant has that name."""


@contextlib.contextmanager
def open_rooms(directory: DataDirectory, *, only_look: bool = False) -> Iterator[Rooms]:
    """Open an existing data directory.

    Refuses a catalog that is older than its store, unless the caller only reads (`only_look`). Raises what
    store and catalog raise: a wrong key, damage, no access.
    """
    directory.require()
    blobs = directory.place.open()
    check_format(blobs)
    keys = KeyStore.from_file(blobs, str(directory.master_key))
    catalog = open_catalog(directory.catalog_place.place)
    try:
        _refuse_emptied(directory, blobs, catalog)
        opened = Rooms(blobs, keys, catalog)
        if not only_look:
            opened = replace(opened, looked=generation.refuse_older(directory, blobs, catalog))
            _refuse_other_key(directory, opened)
            _refuse_older(directory, opened)
        yield opened
    finally:
        catalog.close()


def _refuse_emptied(directory: DataDirectory, blobs: Blobs, catalog: Catalog) -> None:
    """Raise DataDirectoryError for a catalog without tenants if the store has records, which only tenants
    have.
    """
    if not catalog.tenants.list_all() and next(blobs.list("records"), None) is not None:
        raise DataDirectoryError(
            f"{directory.catalog_place} is empty, but {directory.place} is filled: restore the newest copy of the catalog, or rebuild it "
            f"from the store with `staddle-server rebuild --replace --data {directory.path}`"
        )


def _refuse_other_key(directory: DataDirectory, opened: Rooms) -> None:
    """Raise DataDirectoryError for a master key that opens no tenant's keys, neither in the store nor in the
    catalog.

    A tenant created with it would be lost once the right key is restored.
    """
    rows = opened.catalog.tenants.list_all()
    if rows and all(_opens_not(opened, row) for row in rows):
        raise DataDirectoryError(
            f"{directory.master_key} is not the master key of {directory.path}: it cannot open any tenant's keys, neither in the "
            "store nor in the catalog's copies. Restore the right key from its copy. Nothing was changed; without that key, the data "
            "stored here is unreadable"
        )


def _opens_not(opened: Rooms, row: TenantRow) -> bool:
    """Return whether the tenant's keys exist, twice, and were wrapped with another master key."""
    if not row.wrapped_keys or opened.keys.opens(row.id, row.keys_version, row.wrapped_keys):
        return False
    return isinstance(keys_damage(opened.keys, row.id), WrongMasterKey)


def _refuse_older(directory: DataDirectory, opened: Rooms) -> None:
    """Raise DataDirectoryError for a catalog that lacks decisions in the store's records."""
    if strange := tenants_unknown(opened.blobs, opened.keys, opened.catalog):
        raise _older(directory, f"{counted(len(strange), 'tenant')}, such as {min(strange).hex()}")
    tenants = opened.tenants()
    for row in opened.catalog.tenants.list_all():
        try:
            unknown = records_unknown(tenants.get(row.id), opened.catalog)
        except Damaged:
            continue  # its keys do not open: nothing of this tenant is served, and its alarm says what to do
        if unknown:
            decisions = f"{unknown} of the newest decisions (backups, deletions, holds, tokens)"
            raise _older(directory, f"{decisions} of tenant {row.name}")


def _older(directory: DataDirectory, unknown: str) -> DataDirectoryError:
    return DataDirectoryError(
        f"{directory.catalog_place} is older than its store: it does not know {unknown}. Restore the newest copy of the catalog, or rebuild "
        f"it from the store with `staddle-server rebuild --replace --data {directory.path}`"
    )


def initialise(directory: DataDirectory, now_ns: int) -> str:
    """Create keys, catalog, store and the default tenant, or what is missing of them; return a new admin
    token.

    With the master key of an existing catalog and store, the directory becomes that of a further server of
    them, and the token is empty: the first server has one. The caller keeps other servers out
    (`CatalogPlace.alone`).

    The order allows a restart after any interruption: the store comes before the key, and the catalog before
    a tenant's keys. So a key without a store, and keys without a catalog, always mean a loss. Raises what
    store and catalog raise.
    """
    directory.place.make()
    blobs = directory.place.open()
    try:
        check_format(blobs)
    except BlobMissing:
        create_format(blobs)
    clear_master_key_temporary(str(directory.master_key))
    with _with_master_key(directory):
        sync_directory(
            Files(), str(directory.path)
        )  # for the key, if an earlier start was interrupted before it synced its name
        open_catalog(directory.catalog_place.place).close()
        with open_rooms(directory) as rooms:
            return local_token(rooms, now_ns, shared=directory.catalog_place.is_shared)


@contextlib.contextmanager
def _with_master_key(directory: DataDirectory) -> Iterator[None]:
    """Put the given or a new master key in its place. If the block fails, a given key is removed again: it
    may be that of another store.
    """
    path = str(directory.master_key)
    check_given_key(directory)
    if directory.master_key.exists():
        yield
        return
    if not directory.wanted_key:
        create_master_key(path)
        yield
        return
    save_master_key(path, given_master_key(directory.wanted_key))
    try:
        yield
    except BaseException:
        directory.master_key.unlink()
        raise


def check_given_key(directory: DataDirectory) -> None:
    """Raise DataDirectoryError if the directory has another master key than the given one."""
    if not (directory.wanted_key and directory.master_key.exists()):
        return
    if load_master_key(str(directory.master_key)) != given_master_key(directory.wanted_key):
        raise DataDirectoryError(
            f"{directory.master_key} is another master key than that of --master-key {directory.wanted_key}: nothing was "
            "changed; give the key of this store, or name another directory"
        )


def default_tenant(rooms: Rooms, now_ns: int) -> TenantRow:
    """Return the default tenant, created now if the first start was interrupted before that.

    Raises NoSuchTenantError if the store had more than that, so that its catalog must be another one.
    """
    tenant = rooms.catalog.tenants.get_by_name(DEFAULT_TENANT)
    if tenant is not None:
        return tenant
    if rooms.catalog.tenants.list_all():
        return tenant_named(rooms, DEFAULT_TENANT)
    return create_tenant(rooms, DEFAULT_TENANT, now_ns)


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild did."""

    report: RebuildReport
    aside: str | None
    """Where the previous catalog is now."""
    token: str
    """A new admin token; empty without a tenant `default`, or if nothing was changed."""


def rebuild(directory: DataDirectory, now_ns: int, show: Show, *, dry_run: bool) -> Rebuilt:
    """Create a catalog from the store alone, and put it in place at the end; an existing one is set aside.

    The caller has locked the directory. An interrupted call can be repeated. With `dry_run` the catalog is
    created to see the result, and dropped. Raises what store and catalog raise, and NothingOpens.
    """
    blobs = directory.place.open()
    check_format(blobs)
    keys = KeyStore.from_file(blobs, str(directory.master_key))
    place = directory.catalog_place
    place.prepare_new()
    try:
        catalog = open_catalog(place.new_place)
        try:
            report = Rebuilding(blobs, keys, catalog, now_ns, show).run()
            tenant = None if dry_run else catalog.tenants.get_by_name(DEFAULT_TENANT)
            token = _new_local_token(catalog, tenant, now_ns) if tenant else ""
        finally:
            catalog.close()
        aside = None if dry_run else place.install_new(_aside(now_ns))
        return Rebuilt(report, aside, token)
    finally:
        place.drop_new()


def _aside(now_ns: int) -> str:
    """Return the name for the previous catalog, from the time."""
    seconds, rest = divmod(now_ns, 10**9)
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{rest // 1000:06}Z"


def create_tenant(rooms: Rooms, name: str, now_ns: int) -> TenantRow:
    """Create a tenant with its own keys: durable, with its record, on return. BAD_FIELD for a taken name."""
    check_name("tenant", name)
    if rooms.catalog.tenants.get_by_name(name) is not None:
        raise BadRequest("BAD_FIELD", f"Tenant {name!r} exists already", field="name")
    keys = rooms.keys.create(name, now_ns)
    object_name = keys_name(keys.tenant, KEYS_FIRST)
    wrapped = rooms.blobs.read(object_name, 0, rooms.blobs.size(object_name))
    try:
        tenant = rooms.catalog.tenants.create(
            keys.tenant,
            name,
            now_ns,
            record=encode_record(TenantRecord(name=name, created_ns=now_ns)),
            keys_version=KEYS_FIRST,
            wrapped_keys=wrapped,
        )
    except BadRequest:  # another process took the name meanwhile; after any other error the tenant may exist
        rooms.blobs.delete(object_name)
        raise
    finish_missing(rooms.tenants().get(tenant.id), rooms.catalog)
    return tenant


def set_grace(rooms: Rooms, tenant: TenantRow, grace_s: int, now_ns: int) -> None:
    """Set how long the tenant's deleted backups can be undeleted: durable, with its record, on return."""
    with rooms.catalog.tenants.deciding(tenant.id, now_ns) as at_ns:
        record = TenantSettingsRecord(grace_s=grace_s, at_ns=at_ns)
        rooms.catalog.tenants.set_grace(tenant.id, grace_s, as_pending(tenant.id, record))
    finish_missing(rooms.tenants().get(tenant.id), rooms.catalog)


def tenant_named(rooms: Rooms, name: str) -> TenantRow:
    """Return the tenant with this name. Raises NoSuchTenantError."""
    tenant = rooms.catalog.tenants.get_by_name(name)
    if tenant is None:
        raise NoSuchTenantError(
            f"tenant {name!r} does not exist; `staddle-server tenant list` lists all tenants"
        )
    return tenant


def create_token(
    rooms: Rooms, tenant: TenantRow, name: str, role: TokenRole, now_ns: int, *, expires_ns: int | None = None
) -> str:
    """Create a token, with its record, and return its text: see `Tokens.create` and `finish_all`."""
    text = _create_token(rooms.catalog, tenant, name, role, now_ns, expires_ns=expires_ns)
    finish_all(rooms.tenants(), rooms.catalog)
    return text


def revoke_token(rooms: Rooms, tenant: TenantRow, token: str, now_ns: int) -> Token:
    """Revoke a token, with its record: see `Tokens.revoke` and `finish_all`."""
    ended = _revoke_token(rooms.catalog, tenant, token, now_ns)
    finish_all(rooms.tenants(), rooms.catalog)
    return ended


def confirm_clock(rooms: Rooms) -> Standing:
    """Confirm that the clock is right: see `ClockGuard.confirm`.

    The chain of each tenant gets a record of it.
    """
    tenants = rooms.catalog.tenants.list_all()
    records = [as_noted(tenant.id, "the clock was confirmed") for tenant in tenants]
    standing = ClockGuard(rooms.catalog, SystemClock()).confirm(records)
    finish_all(rooms.tenants(), rooms.catalog)
    return standing


def local_token(rooms: Rooms, now_ns: int, *, shared: bool) -> str:
    """Return a new admin token of the default tenant for the local command, with its record.

    The previous one, whose text is lost, is revoked. In a shared catalog it is kept instead, since another
    server's directory may hold its text, and the new one is empty. Raises as `default_tenant` does.
    """
    tenant = default_tenant(rooms, now_ns)
    if shared and _has_local_token(rooms.catalog, tenant):
        return ""
    token = _new_local_token(rooms.catalog, tenant, now_ns)
    finish_all(rooms.tenants(), rooms.catalog)
    return token


def _new_local_token(catalog: Catalog, tenant: TenantRow, now_ns: int) -> str:
    """Return a new local token with a pending record, which a rebuilt catalog keeps until its first start: it
    may be dropped.
    """
    if _has_local_token(catalog, tenant):
        _revoke_token(catalog, tenant, LOCAL_TOKEN, now_ns)
    return _create_token(catalog, tenant, LOCAL_TOKEN, TokenRole.ADMIN, now_ns)


def _has_local_token(catalog: Catalog, tenant: TenantRow) -> bool:
    tokens = catalog.tokens.list_all(tenant.id)
    return any(token.name == LOCAL_TOKEN and token.revoked_ns is None for token in tokens)


def _create_token(
    catalog: Catalog,
    tenant: TenantRow,
    name: str,
    role: TokenRole,
    now_ns: int,
    *,
    expires_ns: int | None = None,
) -> str:
    record = as_noted(tenant.id, "a token was made")
    return catalog.tokens.create(tenant.id, name, role, now_ns, expires_ns, record=record)


def _revoke_token(catalog: Catalog, tenant: TenantRow, token: str, now_ns: int) -> Token:
    return catalog.tokens.revoke(tenant.id, token, now_ns, record=as_noted(tenant.id, "a token was revoked"))
