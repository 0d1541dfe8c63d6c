"""The schema comes from scripts alone, whoever runs them and however often."""

import asyncio

import psycopg
import pytest

from services.persistence.migrate import MigrationError, current, head, migrate


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {name for (name,) in found}


def test_an_empty_database_gets_the_newest_schema(postgres_url: str) -> None:
    assert current(postgres_url) is None
    migrate(postgres_url)
    assert current(postgres_url) == head()
    assert {"users", "profiles", "sessions", "messages", "message_pieces"} <= tables(postgres_url)


def test_migrating_again_changes_nothing_so_every_start_may_do_it(postgres_url: str) -> None:
    migrate(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("INSERT INTO users (id) VALUES ('ann')")
    migrate(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT id FROM users").fetchall() == [("ann",)]


async def test_processes_that_migrate_at_once_take_turns(postgres_url: str) -> None:
    await asyncio.gather(*(asyncio.to_thread(migrate, postgres_url) for _ in range(4)))
    assert current(postgres_url) == head()


def test_the_vector_extension_is_there_when_the_server_has_it(postgres_url: str) -> None:
    migrate(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        missing = connection.execute(
            "SELECT name FROM pg_available_extensions"
            " WHERE name = 'vector' AND installed_version IS NULL"
        )
        assert missing.fetchall() == []


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(MigrationError) as caught:
        migrate("postgresql://braid:hidden@127.0.0.1:1/braid")
    assert "hidden" not in str(caught.value)
