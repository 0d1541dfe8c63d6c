"""The simulator's life: start, run, drain."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from aiohttp import web

from services.simulator.config import SimulatorConfig
from services.simulator.endpoints import Endpoints
from services.simulator.journal import Journal
from services.simulator.player import Player

_BACKLOG = 4_096  # with the usual 128, a thousand clients at once wait for SYN retries

__all__ = ["Simulator", "SimulatorConfig", "serve"]


class Simulator:
    """An OpenAI-compatible upstream in this process.

        async with Simulator(SimulatorConfig(ttft_s=0, gap_s=0)) as upstream:
            client = AsyncOpenAI(base_url=upstream.base_url, api_key="any")

    Leaving the block ends every stream at once; `drain` lets running ones finish.
    """

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self.config = config or SimulatorConfig()
        self.journal = Journal(self.config.journal_entries, self.config.journal_bytes)
        self.port = 0
        """The real port, once started."""
        self._player = Player(self.journal)
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._drained = asyncio.Event()

    @property
    def base_url(self) -> str:
        """For OpenAI clients; ends in /v1."""
        return f"{self.url}/v1"

    @property
    def url(self) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listens when this returns. Raises OSError if the port is taken."""
        config = self.config
        self._runner = web.AppRunner(
            Endpoints(config, self.journal, self._player).app(),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=0.1,
        )
        await self._runner.setup()
        self._site = web.TCPSite(
            self._runner,
            config.host,
            config.port,
            backlog=_BACKLOG,
            reuse_port=config.reuse_port or None,
        )
        try:
            await self._site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        self.port = self._runner.addresses[0][1]

    async def run(self) -> None:
        """Serves until drained."""
        await self._drained.wait()

    async def drain(self, deadline_s: float | None = None) -> None:
        """Stops listening, lets running answers end by the deadline, then aborts them.
        Idempotent; None: `drain_s` of the configuration."""
        runner, self._runner = self._runner, None
        if runner is not None:
            if self._site is not None:
                await self._site.stop()
            await self._player.drain(self.config.drain_s if deadline_s is None else deadline_s)
            await runner.cleanup()
        self._drained.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.drain(0.0)


async def serve(config: SimulatorConfig, stop: asyncio.Event) -> None:
    """Start, run until `stop` is set, drain."""
    simulator = Simulator(config)
    await simulator.start()
    try:
        await stop.wait()
    finally:
        await simulator.drain()
