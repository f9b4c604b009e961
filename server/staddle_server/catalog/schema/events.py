"""What operators are notified of (upkeep/events), to whom it goes (upkeep/notify), and the space of the disks."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
)

from staddle_server.catalog.schema.columns import ID, NAME, ROW, metadata

DELIVERY_PENDING, DELIVERY_DONE, DELIVERY_GIVEN_UP = 0, 1, 2

# One row for each event. `server` is the data directory of the server that it belongs to; empty: all of them.
events = Table(
    "events",
    metadata,
    Column("row", ROW, primary_key=True, autoincrement=True),
    Column("id", ID, nullable=False, unique=True),
    Column("kind", NAME, nullable=False),
    Column("tenant", NAME, nullable=False),
    Column("server", NAME, nullable=False),
    Column("subject", NAME, nullable=False),
    Column("severity", NAME, nullable=False),
    Column("text", Text, nullable=False),
    Column("advice", Text, nullable=False),
    Column("since_ns", BigInteger, nullable=False),
    Column("began_ns", BigInteger, nullable=False),
    # Since when an open event's alarm is not found any more; it is over once that has lasted.
    Column("absent_ns", BigInteger),
    Column("over_ns", BigInteger),
)
IS_HAPPENING = events.c.over_ns.is_(None)
Index(
    "events_open",
    events.c.kind,
    events.c.tenant,
    events.c.server,
    events.c.subject,
    unique=True,
    sqlite_where=IS_HAPPENING,
)

# What each target gets: that an event began, and that it is over.
deliveries = Table(
    "deliveries",
    metadata,
    Column("event", ROW, ForeignKey("events.row"), nullable=False),
    Column("over", Boolean, nullable=False),
    Column("target", NAME, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("tries", Integer, nullable=False),
    # Pending: when the next try is due. A try that is under way moves it ahead, so that no other server tries too.
    Column("next_ns", BigInteger, nullable=False),
    Column("error", Text, nullable=False),
    PrimaryKeyConstraint("event", "over", "target"),
)
IS_PENDING = deliveries.c.state == DELIVERY_PENDING
Index("deliveries_pending", deliveries.c.target, deliveries.c.next_ns, sqlite_where=IS_PENDING)

# How the last tries of each target ended.
targets = Table(
    "targets",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("kind", NAME, nullable=False),
    Column("tried_ns", BigInteger, nullable=False),
    Column("reached_ns", BigInteger),
    # Since when every try has failed; null: the last one did not.
    Column("failing_ns", BigInteger),
    Column("error", Text, nullable=False),
)

# The free space of the disks of each server, hour by hour.
space_samples = Table(
    "space_samples",
    metadata,
    Column("server", NAME, nullable=False),
    Column("path", NAME, nullable=False),
    Column("taken_ns", BigInteger, nullable=False),
    Column("free_bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("server", "path", "taken_ns"),
)
