"""`braid migrate`: bring the database to this version's tables."""

from __future__ import annotations

import click

from deploy.cli.options import settings_options
from deploy.mesh.errors import MeshError
from services.persistence.migrate import MigrationError, migrate
from shared.settings import load_settings
from shared.telemetry import configure


@click.command(name="migrate")
@settings_options("postgres_url")
def command(**options: str | None) -> int:
    """Bring the database to this version's tables; running it again changes nothing."""
    settings = load_settings(options)
    configure(settings, "migrate", settings.service_id or "migrate")
    try:
        migrate(settings.postgres_url)
    except MigrationError as error:
        raise MeshError(f"migrate: {error}") from None
    return 0
