"""How an upload begins: replayed, taken over, or new; and its base.

Everything here runs inside the one transaction of `Uploads.begin`.
"""

import hashlib
import json
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from staddle_server.base import errors, limits
from staddle_server.base.types import Authors, Kind, Scope, UploadState
from staddle_server.catalog import schema
from staddle_server.catalog.database import insert_or_ignore, later, locking
from staddle_server.catalog.rows import dataset_row, upload_value
from staddle_server.catalog.validation import check_dataset, check_id, pack_authors, pack_tags
from staddle_server.catalog.values import BeginUpload, Begun

_d = schema.datasets.c
_b = schema.backups.c
_u = schema.uploads.c
_r = schema.upload_requests.c

_FIRST_EPOCH: Final = 1


class OvertakenError(Exception):
    """The same request began an upload meanwhile: roll this transaction back and begin again, as a replay."""


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
    whole = spec.kind is Kind.FULL or (spec.new_root and spec.kind is Kind.AUTO)
    if whole and spec.scope is Scope.CHANGES:
        raise _bad("scope", "A FULL backup must have the scope WHOLE: CHANGES needs a base")


def begin(connection: Connection, tenant_row: int, spec: BeginUpload) -> Begun:
    """Replay, take over, or open an upload. See `Uploads.begin`. Raises OvertakenError."""
    replayed = _replay(connection, tenant_row, spec)
    if replayed is not None:
        return replayed
    dataset = _dataset_made(connection, tenant_row, spec)
    _check_root(dataset, spec)
    upload = _take_over(connection, dataset, spec) if spec.take_over else None
    taken_over = upload is not None
    if upload is None:
        upload = _open(connection, dataset, spec)
    value = upload_value(connection, tenant_row, upload)
    if spec.request_id:
        _remember(connection, tenant_row, spec, value.id, value.epoch, taken_over=taken_over)
    return Begun(value, taken_over, replayed=False)


# --- replay


def _replay(connection: Connection, tenant_row: int, spec: BeginUpload) -> Begun | None:
    if not spec.request_id:
        return None
    row = connection.execute(
        select(schema.upload_requests).where(_r.tenant == tenant_row, _r.request_id == spec.request_id)
    ).one_or_none()
    if row is None:
        return None
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
    connection: Connection, tenant_row: int, spec: BeginUpload, upload: bytes, epoch: int, *, taken_over: bool
) -> None:
    remembered = connection.execute(
        insert_or_ignore(connection, schema.upload_requests),
        {
            "tenant": tenant_row,
            "request_id": spec.request_id,
            "upload": upload,
            "asked": _asked(spec),
            "epoch": epoch,
            "taken_over": taken_over,
        },
    )
    if remembered.rowcount != 1:
        raise OvertakenError


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
    ]
    return hashlib.sha256(json.dumps(said).encode()).digest()


def _begins_ns(spec: BeginUpload) -> int:
    return spec.now_ns if spec.begin_ns is None else spec.begin_ns


# --- the dataset and its root


def _dataset_made(connection: Connection, tenant_row: int, spec: BeginUpload) -> Row[Any]:
    later(
        connection,
        insert_or_ignore(connection, schema.datasets),
        {
            "tenant": tenant_row,
            "name": spec.dataset,
            "created_ns": _begins_ns(spec),
            "host": "",
            "root": "",
            "last_number": 0,
        },
    )
    return dataset_row(connection, tenant_row, spec.dataset)


def _check_root(dataset: Row[Any], spec: BeginUpload) -> None:
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


def _take_over(connection: Connection, dataset: Row[Any], spec: BeginUpload) -> bytes | None:
    """Take an upload over and raise its epoch. It keeps its base, even if a new upload would have another."""
    # Not the durable point, which may be large.
    query = select(_u.id, _u.epoch, _u.kind, _u.asked_kind).where(
        _u.dataset == dataset.row,
        schema.IS_OPEN,
        _u.expires_ns > (spec.now_ns if spec.alive_ns is None else spec.alive_ns),
        _u.token == spec.principal.token,
        _u.scope == spec.scope.value,
        _u.host == spec.host,
        _u.root == spec.root,
        _u.new_root == spec.new_root,
        _u.fingerprint == spec.fingerprint,
    )
    rows = connection.execute(locking(query.order_by(_u.begin_ns.desc(), _u.id))).all()
    found = next((row for row in rows if row.asked_kind == spec.kind), None)
    if found is None and rows:
        kind, _ = _resolve(connection, dataset, spec)
        found = next((row for row in rows if row.kind == kind), None)
    if found is None:
        return None
    later(
        connection,
        update(schema.uploads)
        .where(_u.id == found.id)
        .values(
            epoch=found.epoch + 1,
            principal=spec.principal.name,
            server=spec.server,
            tags=pack_tags(spec.tags),
            **spec.terms.expiries(spec.now_ns),
        ),
    )
    return bytes(found.id)


# --- opening


def _open(connection: Connection, dataset: Row[Any], spec: BeginUpload) -> bytes:
    kind, base = _resolve(connection, dataset, spec)
    later(
        connection,
        insert(schema.uploads),
        {
            "id": spec.upload,
            "tenant": dataset.tenant,
            "dataset": dataset.row,
            "request_id": spec.request_id,
            "token": spec.principal.token,
            "principal": spec.principal.name,
            "authors": pack_authors(Authors(spec.principal.name)),
            "asked_kind": spec.kind.value,
            "kind": kind.value,
            "scope": spec.scope.value,
            "base": base,
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
        },
    )
    return spec.upload


def _resolve(connection: Connection, dataset: Row[Any], spec: BeginUpload) -> tuple[Kind, bytes]:
    """Return the resolved kind and the base (empty for FULL). The base's row is locked and not deleted."""
    if spec.kind is Kind.FULL or (spec.kind is Kind.AUTO and spec.new_root):
        return Kind.FULL, b""
    newest = select(_b.id).where(_b.dataset == dataset.row, _b.deleted_ns.is_(None))
    if spec.kind is Kind.DIFFERENTIAL:
        newest = newest.where(_b.kind == Kind.FULL.value)
    newest = newest.order_by(_b.number.desc()).limit(1)
    base = connection.execute(locking(newest)).scalar()
    while base is None and connection.execute(newest).scalar() is not None:
        # The backup whose lock was awaited was deleted meanwhile: lock the one that is newest now.
        base = connection.execute(locking(newest)).scalar()
    if base is not None:
        return (Kind.INCREMENTAL if spec.kind is Kind.AUTO else spec.kind), base
    if spec.kind is Kind.AUTO and spec.scope is Scope.WHOLE:
        return Kind.FULL, b""
    what = "FULL backup" if spec.kind is Kind.DIFFERENTIAL else "backup"
    raise errors.Precondition(
        "NO_BASE",
        f"Dataset {spec.dataset!r} has no {what} to start from: begin with a FULL backup of scope WHOLE",
        dataset=spec.dataset,
    )


def _bad(field: str, message: str) -> errors.BadRequest:
    return errors.BadRequest("BAD_FIELD", message, field=field)
