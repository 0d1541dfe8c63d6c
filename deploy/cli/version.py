"""`braid version`."""

from __future__ import annotations

from importlib.metadata import version

import click


@click.command(name="version")
def command() -> int:
    """Print the version."""
    click.echo(f"braidstream {version('braidstream')}")
    return 0
