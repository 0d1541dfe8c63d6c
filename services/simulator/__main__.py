"""`python -m services.simulator --port 8099`; each option is also SIM_<OPTION>.

Not BRAID_…, because the other services refuse variables of that prefix that they do not know; and
not SIMULATOR_…, because Kubernetes sets SIMULATOR_PORT to a URL for a Service of that name.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import click

from services.simulator.config import DEFAULT_MODELS, SimulatorConfig
from services.simulator.service import Simulator

_OUR = SimulatorConfig()


@click.command(context_settings={"auto_envvar_prefix": "SIM", "show_default": True})
@click.option("--host", default=_OUR.host)
@click.option("--port", default=8099, help="0: a free one, printed at the start.")
@click.option("--reuse-port", is_flag=True, help="Let several processes share the port.")
@click.option("--ttft-s", default=_OUR.ttft_s, help="Time to first token.")
@click.option("--gap-s", default=_OUR.gap_s, help="Gap between tokens; 0 is flat out.")
@click.option("--tokens", default=_OUR.tokens, help="Usual length of an answer.")
@click.option("--seed", default=_OUR.seed)
@click.option("--model", "models", multiple=True, default=DEFAULT_MODELS, help="Repeatable.")
@click.option("--any-model", is_flag=True, help="Accept every model name.")
@click.option("--api-key", "api_keys", multiple=True, help="Repeatable; none: no key needed.")
@click.option("--embedding-dimensions", default=_OUR.embedding_dimensions)
@click.option("--drain-s", default=_OUR.drain_s)
def main(any_model: bool, models: tuple[str, ...], api_keys: tuple[str, ...], **given: Any) -> None:
    """An OpenAI-compatible upstream that makes its answers up."""
    config = SimulatorConfig(
        models=() if any_model else models, api_keys=frozenset(api_keys) or None, **given
    )
    if sys.platform == "win32":
        asyncio.run(_serve(config))
    else:
        import uvloop  # noqa: PLC0415 - not there on Windows

        uvloop.run(_serve(config))


async def _serve(config: SimulatorConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    simulator = Simulator(config)
    await simulator.start()
    click.echo(f"simulator listens on {simulator.base_url}")
    await stop.wait()
    await simulator.drain()


if __name__ == "__main__":
    main()
