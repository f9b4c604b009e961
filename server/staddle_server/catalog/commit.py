"""What a commit depends on, and the backup that it makes.

Everything here runs inside the one transaction of `Uploads.commit`.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from msgspec import structs
from sqlalchemy import Connection, bindparam, func, insert, select, update

from staddle_server.base.clock import NS
from staddle_server.base.types import Kind, PackSummary, Scope
from staddle_server.catalog import runs, schema
from staddle_server.catalog.database import Query, later, locking, together
from staddle_server.catalog.decisions import locked_chain
from staddle_server.catalog.packs import locked_packs
from staddle_server.catalog.rows import backup_of, locked_upload, valid_token
from staddle_server.catalog.values import Backup, NewBackup

_u = schema.uploads.c
_m = schema.upload_missing.c
_d = schema.datasets.c

_THIS: Final = bindparam("upload", type_=schema.ID)
MISSING_COUNT: Final = (
    select(func.count().label("missing")).select_from(schema.upload_missing).where(_m.upload == _THIS)
)
_DATASET_OF: Final = locking(
    select(schema.datasets).where(_d.row == select(_u.dataset).where(_u.id == _THIS).scalar_subquery())
)


class Committing(NamedTuple):
    """Rows of all that a commit depends on, locked in this order: upload, packs, dataset, end of the chain."""

    uploads: Sequence[Any]
    tokens: Sequence[Any]
    packs: Sequence[Any]
    counts: Sequence[Any]
    datasets: Sequence[Any]
    chains: Sequence[Any]


def committing(
    connection: Connection, tenant_row: int, upload: bytes, packs: Sequence[PackSummary], valid_ns: int
) -> Committing:
    """Return the rows that the commit of this upload with these packs depends on."""
    found = together(
        connection,
        locked_upload(tenant_row, upload),
        valid_token(upload, valid_ns),
        locked_packs(tenant_row, packs),
        Query(MISSING_COUNT, {"upload": upload}),
        Query(_DATASET_OF, {"upload": upload}),
        locked_chain(tenant_row),
    )
    return Committing(*found)


def insert_backup(
    connection: Connection, found: Committing, new: NewBackup, authors: str, now_ns: int
) -> Backup:
    """Give the backup the next number in its dataset, and return it."""
    (upload,), (dataset,), (tenant,) = found.uploads, found.datasets, found.chains
    number = dataset.last_number + 1
    # All of a FULL was read by its client: it has no base, also if the upload started from one.
    full = upload.kind == Kind.FULL.value
    row = {
        "id": new.id,
        "tenant": upload.tenant,
        "dataset": upload.dataset,
        "number": number,
        "kind": upload.kind,
        "scope": Scope.WHOLE.value if full else upload.scope,
        "base": b"" if full else upload.base,
        "upload": upload.id,
        "request_id": upload.request_id,
        "principal": upload.principal,
        "authors": authors,
        "begin_ns": upload.begin_ns,
        "commit_ns": now_ns,
        "deleted_ns": None,
        "root_level": new.root.level,
        "root_digest": new.root.digest,
        "entry_count": new.root.entries,
        "data_bytes": new.root.data_bytes,
        "stored_bytes": new.stored_bytes,
        **structs.asdict(new.changes),
        "tags": upload.tags,
        "host": upload.host,
        "source_root": upload.root,
        "retain_until_ns": now_ns + dataset.min_retention_s * NS if dataset.min_retention_s else 0,
        "hold_ns": None,
        "hold_reason": "",
    }
    later(connection, insert(schema.backups), row)
    host, root = _remembered_root(dataset, upload)
    later(
        connection,
        update(schema.datasets)
        .where(_d.row == upload.dataset)
        .values(last_number=number, host=host, root=root, success_ns=now_ns),
    )
    made = backup_of(
        SimpleNamespace(
            **row,
            dataset_name=dataset.name,
            dataset_hold_ns=dataset.hold_ns,
            dataset_hold_reason=dataset.hold_reason,
            tenant_id=tenant.id,
            grace_s=tenant.grace_s,
        )
    )
    runs.done(connection, made, new.problem_count)
    return made


def _remembered_root(dataset: Any, upload: Any) -> tuple[str, str]:
    """Return the dataset's host and root as the newest backup stated them; unstated ones stay."""
    if upload.new_root and (upload.host or upload.root):
        return upload.host, upload.root
    return upload.host or dataset.host, upload.root or dataset.root
