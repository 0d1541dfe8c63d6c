"""`braid run`: one service in this process, which is how it is deployed."""

from __future__ import annotations

import os
import secrets
from importlib import import_module
from typing import Final

import click

from shared.actor import Service, run_service
from shared.settings import load_settings
from shared.telemetry import configure

SERVICES: Final = ("context", "edge", "merger", "persistence", "worker")


@click.command(name="run")
@click.argument("service", type=click.Choice(SERVICES))
def command(service: str) -> int:
    """Run one SERVICE against servers given by URL, until SIGTERM or SIGINT drains it."""
    made_up = f"{service}-{os.getpid()}-{secrets.token_hex(2)}"
    settings = load_settings()
    settings = load_settings({"service_id": settings.service_id or made_up})
    configure(settings, service, settings.service_id or made_up)
    built: Service = import_module(f"services.{service}.service").build(settings)
    return run_service(built)
