"""How an upload begins: replayed, taken over, or new; and its base.

Everything here runs inside the one transaction of `Uploads.begin`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, insert, select, update

from staddle_server.base import errors, limits
from staddle_server.base.types import Authors, Kind, Scope, UploadState
from staddle_server.catalog import runs, schema
from staddle_server.catalog.database import Query, later, locking, together
from staddle_server.catalog.datasets import make_dataset, make_real
from staddle_server.catalog.rows import dataset_number, root_columns, upload_of, upload_value
from staddle_server.catalog.validation import check_dataset, check_id, pack_authors, pack_tags
from staddle_server.catalog.values import BeginUpload, Begun, Upload

_d = schema.datasets.c
_b = schema.backups.c
_u = schema.uploads.c
_r = schema.upload_requests.c
_t = schema.tenants.c

_FIRST_EPOCH: Final = 1


_ROOT: Final = [column.name for column in root_columns(_b)]


def check_begin(spec: BeginUpload) -> None:
    """Check what needs no database. BAD_FIELD."""
    check_id("upload", spec.upload)
    check_dataset(spec.dataset)
    for field, value, bytes_max in (
        ("request_id", spec.request_id, limits.REQUEST_ID_BYTES_MAX),
        ("host", spec.host, limits.HOST_BYTES_MAX),
        ("root", spec.root, limits.ROOT_BYTES_MAX),
        ("fingerprint", spec.fingerprint, limits.FINGERPRINT_BYTES_MAX),
    ):
        if len(value.encode("utf-8", "replace")) > bytes_max:
            raise _bad(field, f"{field} has at most {bytes_max} bytes")
        if "\0" in value:
            raise _bad(field, f"{field} contains a NUL character: remove it")
    if spec.new_root and spec.kind is Kind.DIFFERENTIAL:
        raise _bad("kind", "A backup of a new root cannot be DIFFERENTIAL: it has no comparable predecessor")
    if spec.base:
        if spec.kind is not Kind.FULL or spec.scope is not Scope.CHANGES or spec.new_root:
            raise _bad(
                "base_backup_id", "Only a FULL backup of scope CHANGES and the same root names its base"
            )
    elif _is_full(spec) and spec.scope is Scope.CHANGES:
        raise _bad("scope", "A FULL backup must have the scope WHOLE, or name its base: CHANGES needs one")


def begin(connection: Connection, tenant_row: int, spec: BeginUpload) -> Begun:
    """Replay, take over, or open an upload. See `Uploads.begin`.

    IntegrityError, also at the commit, if the same request began an upload meanwhile.
    """
    make_dataset(connection, tenant_row, spec.dataset, _begins_ns(spec))
    found = _Found(
        *together(
            connection,
            _request(tenant_row, spec) if spec.request_id else None,
            _dataset(tenant_row, spec),
            _takeable(tenant_row, spec) if spec.take_over else None,
            None if _starts_from_nothing(spec) else Query(locking(_base(tenant_row, spec))),
        )
    )
    if found.requests:
        return _replay(connection, tenant_row, spec, found.requests[0])
    (dataset,) = found.datasets
    if dataset.reported:
        make_real(connection, tenant_row, spec.dataset, _begins_ns(spec))
    _check_root(dataset, spec)
    taken = _take_over(connection, tenant_row, spec, found)
    value = taken or _open(connection, tenant_row, spec, found)
    if spec.request_id:
        _remember(connection, tenant_row, spec, value, taken_over=taken is not None)
    return Begun(value, taken is not None, replayed=False)


class _Found(NamedTuple):
    """Rows of an earlier call with the request id, of the dataset, of uploads to take over, and of the base."""

    requests: Sequence[Any]
    datasets: Sequence[Any]
    takeable: Sequence[Any]
    bases: Sequence[Any]


# --- replay


def _request(tenant_row: int, spec: BeginUpload) -> Query:
    return Query(
        select(schema.upload_requests).where(_r.tenant == tenant_row, _r.request_id == spec.request_id)
    )


def _replay(connection: Connection, tenant_row: int, spec: BeginUpload, row: Any) -> Begun:
    if row.asked != _asked(spec):
        raise errors.AlreadyExists(
            "REQUEST_ID_REUSED",
            f"Request id {spec.request_id!r} was used for another request: use a new one",
            field="request_id",
        )
    upload = upload_value(connection, tenant_row, row.upload)
    # With the original epoch: a later owner of the upload must never share its epoch with this caller.
    return Begun(replace(upload, epoch=row.epoch), row.taken_over, replayed=True)


def _remember(
    connection: Connection, tenant_row: int, spec: BeginUpload, upload: Upload, *, taken_over: bool
) -> None:
    later(
        connection,
        insert(schema.upload_requests),
        {
            "tenant": tenant_row,
            "request_id": spec.request_id,
            "upload": upload.id,
            "asked": _asked(spec),
            "epoch": upload.epoch,
            "taken_over": taken_over,
        },
    )


def _asked(spec: BeginUpload) -> bytes:
    """Return a hash of all that the caller said and of its identity: another principal's request id is of no
    use.
    """
    said = [
        spec.principal.token.hex(),
        spec.dataset,
        spec.kind.value,
        spec.scope.value,
        pack_tags(spec.tags),
        spec.host,
        spec.root,
        spec.new_root,
        spec.take_over,
        spec.fingerprint,
        *([spec.base.hex()] if spec.base else []),
    ]
    return hashlib.sha256(json.dumps(said).encode()).digest()


def _begins_ns(spec: BeginUpload) -> int:
    return spec.now_ns if spec.begin_ns is None else spec.begin_ns


# --- the dataset and its root


def _dataset(tenant_row: int, spec: BeginUpload) -> Query:
    """Return the query for the dataset with what an upload's value has of its tenant."""
    return Query(
        select(schema.datasets, _t.id.label("tenant_id"), _t.damage_epoch)
        .join_from(schema.datasets, schema.tenants, _d.tenant == _t.row)
        .where(_d.tenant == tenant_row, _d.name == spec.dataset)
    )


def _check_root(dataset: Any, spec: BeginUpload) -> None:
    if spec.new_root:
        return
    for said, known in ((spec.host, dataset.host), (spec.root, dataset.root)):
        if said and known and said != known:
            raise errors.Precondition(
                "ROOT_DIFFERS",
                f"Dataset {spec.dataset!r} holds {dataset.root!r} of host {dataset.host!r}: "
                "use another dataset, or declare a new root",
                dataset=spec.dataset,
                host=dataset.host,
                root=dataset.root[:1024],
            )


# --- taking over


def _takeable(tenant_row: int, spec: BeginUpload) -> Query:
    """Return the query for the uploads that may be taken over, newest first, locked."""
    # Not the durable point, which may be large.
    query = select(_u.id, _u.epoch, _u.kind, _u.asked_kind).where(
        _u.dataset == dataset_number(tenant_row, spec.dataset),
        schema.IS_OPEN,
        _u.expires_ns > (spec.now_ns if spec.alive_ns is None else spec.alive_ns),
        _u.token == spec.principal.token,
        _u.scope == spec.scope.value,
        _u.host == spec.host,
        _u.root == spec.root,
        _u.new_root == spec.new_root,
        _u.fingerprint == spec.fingerprint,
    )
    if spec.base:  # what the client leaves out is in this backup, and no other
        query = query.where(_u.base == spec.base)
    return Query(locking(query.order_by(_u.begin_ns.desc(), _u.id)))


def _take_over(connection: Connection, tenant_row: int, spec: BeginUpload, found: _Found) -> Upload | None:
    """Take an upload over and raise its epoch. It keeps its base, even if a new upload would have another."""
    taken = next((row for row in found.takeable if row.asked_kind == spec.kind), None)
    if taken is None and found.takeable:
        kind, _ = _resolve(connection, tenant_row, spec, found.bases)
        taken = next((row for row in found.takeable if row.kind == kind), None)
    if taken is None:
        return None
    later(
        connection,
        update(schema.uploads)
        .where(_u.id == taken.id)
        .values(
            epoch=taken.epoch + 1,
            principal=spec.principal.name,
            server=spec.server,
            tags=pack_tags(spec.tags),
            **spec.terms.expiries(spec.now_ns),
        ),
    )
    runs.taken_over(connection, taken.id, spec.principal.name)
    return upload_value(connection, tenant_row, taken.id)


# --- opening


def _open(connection: Connection, tenant_row: int, spec: BeginUpload, found: _Found) -> Upload:
    kind, base = _resolve(connection, tenant_row, spec, found.bases)
    (dataset,) = found.datasets
    row = {
        "id": spec.upload,
        "tenant": tenant_row,
        "dataset": dataset.row,
        "request_id": spec.request_id,
        "token": spec.principal.token,
        "principal": spec.principal.name,
        "authors": pack_authors(Authors(spec.principal.name)),
        "asked_kind": spec.kind.value,
        "kind": kind.value,
        "scope": spec.scope.value,
        "base": b"" if base is None else base.id,
        "tags": pack_tags(spec.tags),
        "host": spec.host,
        "root": spec.root,
        "new_root": spec.new_root,
        "fingerprint": spec.fingerprint,
        "state": UploadState.OPEN.value,
        "epoch": _FIRST_EPOCH,
        **spec.terms.expiries(spec.now_ns),
        "begin_ns": _begins_ns(spec),
        "durable": b"",
        "position": 0,
        "entry_count": 0,
        "data_bytes": 0,
        "last_failure": "",
        "backup": b"",
        "server": spec.server,
    }
    later(connection, insert(schema.uploads), row)
    runs.begun(connection, row)
    return upload_of(
        SimpleNamespace(
            **row,
            dataset_name=dataset.name,
            tenant_id=dataset.tenant_id,
            damage_epoch=dataset.damage_epoch,
            **dict.fromkeys(_ROOT, None) if base is None else {name: getattr(base, name) for name in _ROOT},
        )
    )


def _is_full(spec: BeginUpload) -> bool:
    """Return whether the backup is FULL, whatever the dataset holds."""
    return spec.kind is Kind.FULL or (spec.kind is Kind.AUTO and spec.new_root)


def _starts_from_nothing(spec: BeginUpload) -> bool:
    """Return whether the upload has no base, whatever the dataset holds."""
    return _is_full(spec) and not spec.base


def _base(tenant_row: int, spec: BeginUpload) -> Select[Any]:
    """Return the query for the backup that the upload starts from."""
    newest = select(_b.id, *root_columns(_b)).where(
        _b.dataset == dataset_number(tenant_row, spec.dataset), schema.IS_SHOWN
    )
    if spec.base:
        return newest.where(_b.id == spec.base)
    if spec.kind is Kind.DIFFERENTIAL:
        newest = newest.where(_b.kind == Kind.FULL.value)
    return newest.order_by(_b.number.desc()).limit(1)


def _resolve(
    connection: Connection, tenant_row: int, spec: BeginUpload, bases: Sequence[Any]
) -> tuple[Kind, Any | None]:
    """Return the resolved kind and the base's row (None for nothing). It is locked and not deleted."""
    if _starts_from_nothing(spec):
        return Kind.FULL, None
    newest = _base(tenant_row, spec)
    base = bases[0] if bases else None
    while base is None and connection.execute(newest).one_or_none() is not None:
        # The backup whose lock was awaited was deleted meanwhile: lock the one that is newest now.
        base = connection.execute(locking(newest)).one_or_none()
    if base is not None:
        return (Kind.INCREMENTAL if spec.kind is Kind.AUTO else spec.kind), base
    if spec.kind is Kind.AUTO and spec.scope is Scope.WHOLE:
        return Kind.FULL, None
    if spec.base:
        raise errors.Precondition(
            "NO_BASE",
            f"Dataset {spec.dataset!r} has no backup {spec.base.hex()}: begin with the scope WHOLE",
            dataset=spec.dataset,
        )
    what = "FULL backup" if spec.kind is Kind.DIFFERENTIAL else "backup"
    raise errors.Precondition(
        "NO_BASE",
        f"Dataset {spec.dataset!r} has no {what} to start from: begin with a FULL backup of scope WHOLE",
        dataset=spec.dataset,
    )


def _bad(field: str, message: str) -> errors.BadRequest:
    return errors.BadRequest("BAD_FIELD", message, field=field)
