"""Runs the migrations inside the transaction that `staddle_server.catalog.migrate` began."""

from alembic import context

from staddle_server.catalog.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
