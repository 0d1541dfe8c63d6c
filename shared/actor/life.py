"""Three verbs of life: start, run, drain.

`run_service` drives one service in its own process: SIGTERM or SIGINT, or the death of one of its
tasks, ends `run`; then it drains within a deadline.
"""

import asyncio
import signal
from abc import ABC, abstractmethod

import structlog
import uvloop

from shared.actor.tasks import Tasks

log = structlog.get_logger()


class Service(ABC):
    """One service instance. What it owns runs in `tasks`; one task's death stops the service."""

    name: str
    instance: str
    drain_deadline_s: float

    def __init__(self) -> None:
        self.tasks = Tasks()

    @abstractmethod
    async def start(self) -> None:
        """Connect, declare, subscribe. After it returns the service works."""

    @abstractmethod
    async def drain(self) -> None:
        """Take nothing new, finish or hand back what is there, disconnect."""

    async def run(self, stop: asyncio.Event) -> None:
        """Wait for `stop`. Raises what one of the service's tasks died of."""
        waiting = asyncio.ensure_future(stop.wait())
        failing = asyncio.ensure_future(self.tasks.failed())
        try:
            done, _ = await asyncio.wait({waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
            if failing in done:
                failing.result()
        finally:
            waiting.cancel()
            failing.cancel()
            await asyncio.gather(waiting, failing, return_exceptions=True)


async def live(service: Service, stop: asyncio.Event) -> int:
    """Start, run until `stop` or failure, drain. Returns the process's exit code."""
    code = 0
    try:
        await service.start()
        log.info("service.started", service=service.name, instance=service.instance)
        await service.run(stop)
    except Exception:
        log.exception("service.failed", service=service.name, instance=service.instance)
        code = 1
    try:
        async with asyncio.timeout(service.drain_deadline_s):
            await service.drain()
        log.info("service.drained", service=service.name, instance=service.instance)
    except TimeoutError:
        log.warning("service.drain_late", service=service.name, deadline_s=service.drain_deadline_s)
        code = code or 1
    except Exception:
        log.exception("service.drain_failed", service=service.name)
        code = code or 1
    finally:
        await service.tasks.cancel()
    return code


async def _live_until_signal(service: Service) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await live(service, stop)


def run_service(service: Service) -> int:
    """Run one service in this process until a signal; returns the exit code."""
    return uvloop.run(_live_until_signal(service))
