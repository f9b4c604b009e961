"""The types that the columns of all tables share."""

from sqlalchemy import BigInteger, Integer, LargeBinary, MetaData, String

metadata = MetaData()
# catalog.postgres copies `sqlite_where` of partial indexes: `postgresql_where` here would load SQLAlchemy's
# PostgreSQL dialects for every catalog.

ROW = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite fills a primary key automatically only if its type is INTEGER."""
NAME = String().with_variant(String(collation="C"), "postgresql")
"""Names are compared and sorted as bytes, whatever the database's locale."""
ID = LargeBinary(16)
DIGEST = LargeBinary(32)
