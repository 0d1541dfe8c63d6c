"""Bringing a database to the newest schema, and saying which one it has.

The schema is what the scripts in `migrations/versions` make of an empty database, in order.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

SCRIPTS = Path(__file__).parent / "migrations"
LOCK_KEY = 0x62726169_64626462
"""PostgreSQL advisory lock that whoever migrates holds: any number, but always this one."""
CONNECT_TIMEOUT_S = 10


class MigrationError(Exception):
    """The database can't be reached, or a script failed; then nothing of the run remains."""


def migrate(postgres_url: str) -> None:
    """Apply every missing script, in one transaction. Blocks; processes take turns.

    Raises MigrationError.
    """
    scripts = _scripts()

    def to_head(revision: Any, _context: MigrationContext) -> Iterable[Any]:
        return scripts._upgrade_revs("head", revision)  # Alembic's own recipe for a custom `fn`

    with _transaction(postgres_url) as connection:
        # Taken before the revision is read: of two that start at once, the second finds all done.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        with EnvironmentContext(Config(), scripts, fn=to_head) as environment:
            environment.configure(connection=connection)
            environment.run_migrations()


def head() -> str:
    """The newest schema this release knows."""
    revision = _scripts().get_current_head()
    if revision is None:
        raise MigrationError(f"no migrations in {SCRIPTS}")
    return revision


def current(postgres_url: str) -> str | None:
    """The schema a database has; None for none. Blocks. Raises MigrationError."""
    with _transaction(postgres_url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(SCRIPTS))


@contextmanager
def _transaction(postgres_url: str) -> Iterator[Connection]:
    # libpq reads the URL itself, so that every form it knows works, sockets included.
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(postgres_url, connect_timeout=CONNECT_TIMEOUT_S),
        poolclass=NullPool,
    )
    try:
        with engine.begin() as connection:
            yield connection
    except (SQLAlchemyError, psycopg.Error) as error:
        reason = getattr(error, "orig", None) or error
        raise MigrationError(f"PostgreSQL: {str(reason).strip()}") from error
    finally:
        engine.dispose()
