"""`braid up`: the whole mesh with one command."""

from __future__ import annotations

import click

from deploy.cli.options import settings_options
from deploy.mesh.up import up
from shared.settings import load
from shared.telemetry import configure


@click.command(name="up")
@settings_options(
    "port",
    "host",
    "data_dir",
    "workers",
    "mergers",
    "edges",
    "contexts",
    "persistences",
    "nats_nodes",
    "default_model",
    "providers_file",
    "log_level",
    "log_format",
)
def command(**options: str | None) -> int:
    """Start servers and services, keep them running, drain them on Ctrl-C or SIGTERM.

    NATS, Redis and PostgreSQL are started unless BRAID_NATS_URL, BRAID_REDIS_URL or
    BRAID_POSTGRES_URL name one; the simulator is started when no provider is configured. Any
    other setting can be given as a variable: `braid config` lists them.
    """
    loaded = load(options)
    configure(loaded.settings, "up", "up")
    return up(loaded)
