"""`python -m tests.chaos.upstream PORT ENTRIES`: the simulator, with a journal large enough."""

import asyncio
import signal
import sys

import uvloop

from services.simulator.config import SimulatorConfig
from services.simulator.service import serve

ENTRY_BYTES = 4 * 1024


async def main(port: int, entries: int) -> None:
    config = SimulatorConfig(
        port=port, journal_entries=entries, journal_bytes=entries * ENTRY_BYTES, drain_s=0.0
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await serve(config, stop)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
