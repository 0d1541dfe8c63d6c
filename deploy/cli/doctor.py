"""`braid doctor`: what is well, what is not, and what to do about it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import click

from deploy.cli.options import settings_options
from deploy.mesh.checks import Patient, examine
from deploy.mesh.datadir import read_mesh
from deploy.mesh.finding import Finding
from deploy.mesh.up import base_url
from shared.settings import load
from shared.telemetry import configure


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@settings_options("data_dir", "host", "port", "nats_url", "redis_url", "postgres_url")
def command(as_json: bool, **options: str | None) -> int:
    """Check every server, provider and service. Exit code 1 when something is wrong.

    What is not given is taken from the mesh that runs on the data folder.
    """
    # Only findings are printed, not the clients' own complaints.
    loaded = load({**options, "log_level": "error"})
    configure(loaded.settings, "doctor", "doctor")
    mesh = read_mesh(loaded.settings.data_dir)
    keys = (
        *("nats_url", "redis_url", "postgres_url", "prefix"),
        *("event_shards", "replicas", "nats_nodes"),
    )
    update = {key: mesh[key] for key in keys if key in mesh and not loaded.is_given(key)}
    settings = loaded.settings.model_copy(update=update)
    is_elsewhere = loaded.is_given("port") or loaded.is_given("host") or "url" not in mesh
    edge_url = base_url(settings) if is_elsewhere else mesh["url"]
    # Of a NATS that is elsewhere only its clients' side can be seen.
    is_ours = settings.nats_url == mesh.get("nats_url")
    monitors = {
        node["name"]: node["monitor_url"] for node in mesh.get("nats_servers", ()) if is_ours
    }
    patient = Patient(settings, edge_url, mesh.get("simulator_url"), monitors)
    findings = asyncio.run(examine(patient))
    click.echo(
        json.dumps([asdict(each) for each in findings], indent=2) if as_json else _table(findings)
    )
    return 0 if all(each.is_ok for each in findings) else 1


def _table(findings: list[Finding]) -> str:
    width = max(len(each.what) for each in findings)
    lines = []
    for each in findings:
        lines.append(f"{'ok' if each.is_ok else 'PROBLEM':<8} {each.what:<{width}}  {each.detail}")
        if each.advice:
            lines.append(f"{'':<8} {'':<{width}}  -> {each.advice}")
    return "\n".join(lines)
