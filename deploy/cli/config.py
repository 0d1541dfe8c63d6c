"""`braid config`: what is in force, and why."""

from __future__ import annotations

import json

import click

from deploy.cli.options import settings_options
from shared.settings import Settings, load


@click.command(name="config")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with each key's description.")
@settings_options("data_dir", "port")
def command(as_json: bool, **options: str | None) -> int:
    """Print every setting in force and where it comes from. Secrets are masked."""
    loaded = load(options)
    values = loaded.settings.masked()
    if as_json:
        facts = {
            key: {
                "value": value,
                "source": loaded.sources[key],
                "description": Settings.model_fields[key].description,
            }
            for key, value in values.items()
        }
        click.echo(json.dumps(facts, indent=2))
        return 0
    shown = {key: "-" if value is None else str(value) for key, value in values.items()}
    width = max(map(len, shown))
    value_width = min(40, max(map(len, shown.values())))
    for key, value in shown.items():
        click.echo(f"{key:<{width}}  {value:<{value_width}}  {loaded.sources[key]}")
    return 0
