"""Tenants, tokens, datasets, backups with their records, and uploads."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    literal,
    text,
)

from staddle_server.base.limits import GRACE_S
from staddle_server.base.types import UploadState
from staddle_server.catalog.schema.columns import DIGEST, ID, NAME, ROW, metadata

tenants = Table(
    "tenants",
    metadata,
    Column("row", ROW, primary_key=True, autoincrement=True),
    Column("id", ID, nullable=False, unique=True),
    Column("name", NAME, nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("keys_version", Integer, nullable=False),
    Column("wrapped_keys", LargeBinary, nullable=False),
    # The chain of the tenant's records: number and link of the newest decided one.
    Column("records_sequence", BigInteger, nullable=False),
    Column("records_link", DIGEST, nullable=False),
    # Records up to this number come from an earlier catalog: their content is known only as far as it was
    # readable.
    Column("records_rebuilt", BigInteger, nullable=False),
    # Rises with every mark of damage, from 0 for none ever: an upload checks whether damage was found since it
    # began.
    Column("damage_epoch", BigInteger, nullable=False, server_default=text("0")),
    # How long a deleted backup can be undeleted.
    Column("grace_s", BigInteger, nullable=False, server_default=text(str(GRACE_S))),
    # After a rebuild, no collection runs until an operator allows it.
    Column("gc_waits", Boolean, nullable=False, server_default=text("FALSE")),
    # Why the tenant's last collection stopped; "" if it did not.
    Column("gc_failure", Text, nullable=False, server_default=text("''")),
    # The time of the newest decision, as in its record: the next one is later, whatever the clock says.
    Column("decided_ns", BigInteger, nullable=False, server_default=text("0")),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("name", NAME, nullable=False),
    Column("role", SmallInteger, nullable=False),
    Column("hash", DIGEST, nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger),
    Column("revoked_ns", BigInteger),
    # To within minutes; null: not since the catalog was made, or made again.
    Column("used_ns", BigInteger),
    # How often people logged out: sessions of the dashboard that began at another count are over.
    Column("logouts", BigInteger, nullable=False, server_default=text("0")),
)
_not_revoked = tokens.c.revoked_ns.is_(None)
Index(
    "tokens_name",
    tokens.c.tenant,
    tokens.c.name,
    unique=True,
    sqlite_where=_not_revoked,
)

datasets = Table(
    "datasets",
    metadata,
    Column("row", ROW, primary_key=True, autoincrement=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("name", NAME, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("host", Text, nullable=False),
    Column("root", Text, nullable=False),
    # Not max(number) of the backups: a purged one's number is not reused.
    Column("last_number", BigInteger, nullable=False),
    # How long a backup cannot be deleted after its commit; the time set on a backup (retain_until_ns) stays.
    Column("min_retention_s", BigInteger, nullable=False, server_default=text("0")),
    Column("hold_ns", BigInteger),
    Column("hold_reason", Text, nullable=False, server_default=text("''")),
    Column("policy", Text, nullable=False, server_default=text("''")),  # JSON; "" for none
    Column("policy_ns", BigInteger, nullable=False, server_default=text("0")),  # when it last changed
    # The last plan applied, and when it deleted backups: a replay gets the original answer.
    Column("applied_plan", Text, nullable=False, server_default=text("''")),
    Column("applied_ns", BigInteger, nullable=False, server_default=text("0")),
    # Only reports of runs that failed before they began an upload name it: for all else it does not exist.
    Column("reported", Boolean, nullable=False, server_default=text("FALSE")),
    # The newest commit; 0 for none. Not of the backups: a deleted or purged one was a success, too.
    Column("success_ns", BigInteger, nullable=False, server_default=text("0")),
    # How often a backup is expected (0: no expectation), with how much patience; since when; and until when no
    # one is told of it (0: not muted).
    Column("expect_every_s", BigInteger, nullable=False, server_default=text("0")),
    Column("expect_grace_s", BigInteger, nullable=False, server_default=text("0")),
    Column("expect_ns", BigInteger, nullable=False, server_default=text("0")),
    Column("expect_mute_ns", BigInteger, nullable=False, server_default=text("0")),
    # Drills: when the last one began and ended (0: none did), which backup it read, and what it found wrong ("":
    # nothing); when one last found all of a backup sound, and of which one.
    Column("drill_begun_ns", BigInteger, nullable=False, server_default=text("0")),
    Column("drill_ns", BigInteger, nullable=False, server_default=text("0")),
    Column("drill_number", BigInteger, nullable=False, server_default=text("0")),
    Column("drill_fault", Text, nullable=False, server_default=text("''")),
    Column("proven_ns", BigInteger, nullable=False, server_default=text("0")),
    Column("proven_number", BigInteger, nullable=False, server_default=text("0")),
    UniqueConstraint("tenant", "name"),
)

backups = Table(
    "backups",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("dataset", ROW, ForeignKey("datasets.row"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("scope", SmallInteger, nullable=False),
    Column("base", ID, nullable=False),  # b"" for FULL; no foreign key: the base may be purged later
    Column("upload", ID, nullable=False, unique=True),
    Column("request_id", Text, nullable=False),
    Column("principal", Text, nullable=False),  # the principal that committed it
    Column("authors", Text, nullable=False),  # JSON, see validation.pack_authors
    Column("begin_ns", BigInteger, nullable=False),
    Column("commit_ns", BigInteger, nullable=False),
    Column("deleted_ns", BigInteger),
    Column("root_level", SmallInteger, nullable=False),
    Column("root_digest", DIGEST, nullable=False),
    Column("entry_count", BigInteger, nullable=False),
    Column("data_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("added", BigInteger, nullable=False),
    Column("content_changed", BigInteger, nullable=False),
    Column("metadata_changed", BigInteger, nullable=False),
    Column("removed", BigInteger, nullable=False),
    Column("metadata_kept", BigInteger, nullable=False),
    Column("tags", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("source_root", Text, nullable=False),
    # From then on it is gone for good; the row stays while an open upload has it as its base.
    Column("purged_ns", BigInteger),
    Column("retain_until_ns", BigInteger, nullable=False, server_default=text("0")),
    Column("hold_ns", BigInteger),
    Column("hold_reason", Text, nullable=False, server_default=text("''")),
    UniqueConstraint("dataset", "number"),
)
IS_SHOWN = backups.c.deleted_ns.is_(None)
IS_KEPT = backups.c.purged_ns.is_(None)
Index("backups_begin", backups.c.dataset, backups.c.begin_ns)
_deleted = text("deleted_ns IS NOT NULL")
Index("backups_deleted", backups.c.deleted_ns, sqlite_where=_deleted)

uploads = Table(
    "uploads",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("dataset", ROW, ForeignKey("datasets.row"), nullable=False),
    Column("request_id", Text, nullable=False),
    Column("token", ID, nullable=False),
    Column("principal", Text, nullable=False),  # the lease holder
    Column("authors", Text, nullable=False),  # JSON, see validation.pack_authors
    Column("asked_kind", SmallInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("scope", SmallInteger, nullable=False),
    Column("base", ID, nullable=False),  # b"" for FULL
    Column("tags", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("root", Text, nullable=False),
    Column("new_root", Boolean, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("lease_expires_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("begin_ns", BigInteger, nullable=False),
    Column("durable", LargeBinary, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("entry_count", BigInteger, nullable=False),
    Column("data_bytes", BigInteger, nullable=False),
    Column("last_failure", Text, nullable=False),
    Column("backup", ID, nullable=False),  # b"" until committed
    # The server that writes it; no foreign key: servers come and go.
    Column("server", ID, nullable=False),
)
# Literal, not bound: the planner uses a partial index only if the query has the same condition.
IS_OPEN = uploads.c.state == literal(UploadState.OPEN.value, literal_execute=True)
_open = text(f"state = {UploadState.OPEN.value}")
Index("uploads_open", uploads.c.dataset, sqlite_where=_open)
Index("uploads_open_expires", uploads.c.expires_ns, sqlite_where=_open)

upload_requests = Table(
    "upload_requests",
    metadata,
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("request_id", NAME, nullable=False),
    Column("upload", ID, ForeignKey("uploads.id"), nullable=False),
    Column("asked", DIGEST, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("taken_over", Boolean, nullable=False),
    PrimaryKeyConstraint("tenant", "request_id"),
)

upload_missing = Table(
    "upload_missing",
    metadata,
    Column("upload", ID, ForeignKey("uploads.id"), nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("length", Integer, nullable=False),
    PrimaryKeyConstraint("upload", "digest"),
    sqlite_with_rowid=False,
)


pending_records = Table(
    "pending_records",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("previous", DIGEST, nullable=False),
    Column(
        "purges", ID
    ),  # the backup that a `purged` record ends: until it is durable, the backup counts as existing
)
