"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None

ROW = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
ID = sa.LargeBinary(16)
DIGEST = sa.LargeBinary(32)


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "chunks",
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("id_head", "id_tail", "pack")),
        *(
            sa.Column(name, sa.Integer(), nullable=False)
            for name in ("segment_offset", "segment_length", "offset", "length")
        ),
    )
    op.create_index("chunks_id", "chunks", ["id_head"], unique=False)
    op.create_index("chunks_pack", "chunks", ["pack"], unique=False)
    op.create_table(
        "tenants",
        sa.Column("row", ROW, autoincrement=True, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("keys_version", sa.Integer(), nullable=False),
        sa.Column("wrapped_keys", sa.LargeBinary(), nullable=False),
        sa.Column("records_sequence", sa.BigInteger(), nullable=False),
        sa.Column("records_link", DIGEST, nullable=False),
        sa.Column("records_rebuilt", sa.BigInteger(), nullable=False),
        sa.Column("damage_epoch", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("row"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "datasets",
        sa.Column("row", ROW, autoincrement=True, nullable=False),
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant"],
            ["tenants.row"],
        ),
        sa.PrimaryKeyConstraint("row"),
        sa.UniqueConstraint("tenant", "name"),
    )
    op.create_table(
        "packs",
        sa.Column("row", ROW, autoincrement=True, nullable=False),
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("upload", ID, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("chunk_count", sa.BigInteger(), nullable=False),
        sa.Column("damaged", sa.Boolean(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant"],
            ["tenants.row"],
        ),
        sa.PrimaryKeyConstraint("row"),
        sa.UniqueConstraint("tenant", "id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "packs_writing",
        "packs",
        ["upload"],
        unique=False,
        sqlite_where=sa.text("state = 1"),
        postgresql_where=sa.text("state = 1"),
    )
    op.create_table(
        "pending_records",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("previous", DIGEST, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant"],
            ["tenants.row"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("role", sa.SmallInteger(), nullable=False),
        sa.Column("hash", DIGEST, nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=True),
        sa.Column("revoked_ns", sa.BigInteger(), nullable=True),
        sa.Column("used_ns", sa.BigInteger(), nullable=True),
        sa.Column("logouts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant"],
            ["tenants.row"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash"),
    )
    op.create_index(
        "tokens_name",
        "tokens",
        ["tenant", "name"],
        unique=True,
        sqlite_where=sa.text("revoked_ns IS NULL"),
        postgresql_where=sa.text("revoked_ns IS NULL"),
    )
    op.create_table(
        "backups",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("dataset", ROW, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("scope", sa.SmallInteger(), nullable=False),
        sa.Column("base", ID, nullable=False),
        sa.Column("upload", ID, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("authors", sa.Text(), nullable=False),
        sa.Column("begin_ns", sa.BigInteger(), nullable=False),
        sa.Column("commit_ns", sa.BigInteger(), nullable=False),
        sa.Column("deleted_ns", sa.BigInteger(), nullable=True),
        sa.Column("root_level", sa.SmallInteger(), nullable=False),
        sa.Column("root_digest", DIGEST, nullable=False),
        sa.Column("entry_count", sa.BigInteger(), nullable=False),
        sa.Column("data_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("added", sa.BigInteger(), nullable=False),
        sa.Column("content_changed", sa.BigInteger(), nullable=False),
        sa.Column("metadata_changed", sa.BigInteger(), nullable=False),
        sa.Column("removed", sa.BigInteger(), nullable=False),
        sa.Column("metadata_kept", sa.BigInteger(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("source_root", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset"],
            ["datasets.row"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant"],
            ["tenants.row"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("dataset", "number"),
        sa.UniqueConstraint("upload"),
    )
    op.create_index("backups_begin", "backups", ["dataset", "begin_ns"], unique=False)
    op.create_table(
        "pack_damage",
        sa.Column("pack", ROW, nullable=False),
        sa.Column("segment_offset", sa.BigInteger(), nullable=False),
        sa.Column("needed", sa.Boolean(), nullable=False, server_default=sa.text("TRUE")),
        sa.ForeignKeyConstraint(
            ["pack"],
            ["packs.row"],
        ),
        sa.PrimaryKeyConstraint("pack", "segment_offset"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "uploads",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("dataset", ROW, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("token", ID, nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("authors", sa.Text(), nullable=False),
        sa.Column("asked_kind", sa.SmallInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("scope", sa.SmallInteger(), nullable=False),
        sa.Column("base", ID, nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("new_root", sa.Boolean(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("begin_ns", sa.BigInteger(), nullable=False),
        sa.Column("durable", sa.LargeBinary(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("entry_count", sa.BigInteger(), nullable=False),
        sa.Column("data_bytes", sa.BigInteger(), nullable=False),
        sa.Column("last_failure", sa.Text(), nullable=False),
        sa.Column("backup", ID, nullable=False),
        sa.Column("server", ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset"],
            ["datasets.row"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant"],
            ["tenants.row"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "uploads_open",
        "uploads",
        ["dataset"],
        unique=False,
        sqlite_where=sa.text("state = 1"),
        postgresql_where=sa.text("state = 1"),
    )
    op.create_index(
        "uploads_open_expires",
        "uploads",
        ["expires_ns"],
        unique=False,
        sqlite_where=sa.text("state = 1"),
        postgresql_where=sa.text("state = 1"),
    )
    op.create_table(
        "claims",
        sa.Column("upload", ID, nullable=False),
        sa.Column("pack", ROW, nullable=False),
        sa.ForeignKeyConstraint(
            ["pack"],
            ["packs.row"],
        ),
        sa.ForeignKeyConstraint(
            ["upload"],
            ["uploads.id"],
        ),
        sa.PrimaryKeyConstraint("upload", "pack"),
        sqlite_with_rowid=False,
    )
    op.create_index("claims_pack", "claims", ["pack"], unique=False)
    op.create_table(
        "upload_missing",
        sa.Column("upload", ID, nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload"],
            ["uploads.id"],
        ),
        sa.PrimaryKeyConstraint("upload", "digest"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "upload_requests",
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("request_id", NAME, nullable=False),
        sa.Column("upload", ID, nullable=False),
        sa.Column("asked", DIGEST, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("taken_over", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant"],
            ["tenants.row"],
        ),
        sa.ForeignKeyConstraint(
            ["upload"],
            ["uploads.id"],
        ),
        sa.PrimaryKeyConstraint("tenant", "request_id"),
    )
