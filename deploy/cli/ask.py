"""`braid ask`: one question, streamed to the terminal, with the figures of its delivery."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import click

from deploy.cli.client import follow
from deploy.mesh.datadir import read_mesh
from deploy.mesh.up import base_url
from shared.settings import load


@dataclass(slots=True)
class Figures:
    """What one reader saw. Times are seconds of a monotonic clock."""

    started: float
    first: float | None = None
    last: float = 0.0
    chunks: int = 0
    characters: int = 0

    def count(self, text: str, now: float) -> None:
        self.first = now if self.first is None else self.first
        self.last = now
        self.chunks += 1
        self.characters += len(text)

    def lines(self) -> list[str]:
        if self.first is None:
            return ["no text came"]
        gaps = max(1, self.chunks - 1)
        return [
            f"time to first byte  {(self.first - self.started) * 1000:8.1f} ms",
            f"chunks              {self.chunks:8d}",
            f"characters          {self.characters:8d}",
            f"average latency     {(self.last - self.first) / gaps * 1000:8.1f} ms per chunk",
            f"total               {(self.last - self.started) * 1000:8.1f} ms",
        ]


@click.command(name="ask")
@click.argument("question")
@click.option("--model", help="The model to ask; the mesh's default otherwise.")
@click.option("--session", "session_id", help="A session id, to go on with a conversation.")
@click.option("--no-rag", is_flag=True, help="Answer without looking into documents.")
@click.option("--max-tokens", type=int, help="Passed on to the provider.")
@click.option("--json", "as_json", is_flag=True, help="Print every event as one JSON line.")
@click.option("--url", help="Where the mesh is; the one that runs here otherwise.")
def command(
    *,
    question: str,
    model: str | None,
    session_id: str | None,
    no_rag: bool,
    max_tokens: int | None,
    as_json: bool,
    url: str | None,
) -> int:
    """Ask the mesh and stream the answer. Exit code 1 when it did not end well."""
    request: dict[str, Any] = {"message": question}
    optional = {"model": model, "session_id": session_id, "max_tokens": max_tokens}
    request |= {key: value for key, value in optional.items() if value is not None}
    if no_rag:
        request["use_rag"] = False
    return asyncio.run(_ask((url or _here()).rstrip("/"), request, as_json=as_json))


def _here() -> str:
    settings = load().settings
    url: str = read_mesh(settings.data_dir).get("url") or base_url(settings)
    return url


async def _ask(url: str, request: dict[str, Any], *, as_json: bool) -> int:
    figures = Figures(time.monotonic())
    terminal: dict[str, Any] = {}
    async for event in follow(url, request):
        if event["type"] == "delta" and (text := event.get("text") or event.get("reasoning")):
            figures.count(text, time.monotonic())
        if as_json:
            click.echo(json.dumps(event, ensure_ascii=False))
        else:
            _show(event)
        terminal = event
    if not as_json:
        click.echo("\n\n" + "\n".join(figures.lines()), err=True)
    return 0 if terminal.get("type") == "done" else 1


def _show(event: dict[str, Any]) -> None:
    match event["type"]:
        case "delta" if "text" in event:
            click.echo(event["text"], nl=False)
        case "delta" if "reasoning" in event:
            click.secho(event["reasoning"], nl=False, dim=True)
        case "delta":
            call = event["tool_call"]
            click.secho(call.get("name", "") + call.get("arguments", ""), nl=False, fg="cyan")
        case "open":
            click.secho(f"stream {event['stream_id']}", dim=True, err=True)
        case "context" if event.get("degraded"):
            click.secho(f"without {', '.join(event['degraded'])}", fg="yellow", err=True)
        case "branch.reset" | "branch.continued":
            click.secho(f"\n[{event['type']}: {event['reason']}]\n", fg="yellow", nl=False)
        case "branch.error" | "error" | "cancelled" | "incomplete":
            what = event.get("message") or event.get("reason", "")
            click.secho(f"\n[{event['type']}: {what}]", fg="red", nl=False)
