"""Runs migrations on the connection that `gateway/store.py` hands over, inside its transaction."""

from alembic import context

from gateway.tables import METADATA

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=METADATA,
    render_as_batch=True,
    transactional_ddl=True,
    compare_type=True,
)
context.run_migrations()
