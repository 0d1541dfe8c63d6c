"""The faults: which, from the seed; and how they are done to a mesh."""

import asyncio
import signal
import time
from collections.abc import Callable
from random import Random

import psutil

from tests.chaos.journals import Hit
from tests.chaos.mesh import Mesh, MeshFailed
from tests.chaos.options import Options


def plan_hits(random: Random, options: Options, names: Callable[[str], list[str]]) -> list[Hit]:
    """Every round hits all victims once, in an order and at processes chosen by `random`."""
    hits: list[Hit] = []
    while len(hits) < options.kills:
        victims = list(options.victims)
        random.shuffle(victims)
        hits += [Hit(service, random.choice(names(service)), kind) for service, kind in victims]
    return hits[: options.kills]


async def perform(hits: list[Hit], mesh: Mesh, options: Options, random: Random) -> None:
    """One fault after another; the mesh heals between, or at least the service that was hit."""
    healing: dict[str, asyncio.Task[None]] = {}
    for hit in hits:
        await asyncio.sleep(random.uniform(*options.gap_s))
        away_s = options.ack_wait_s * random.uniform(*options.away)
        if earlier := healing.pop(hit.service, None):
            await earlier
        task = asyncio.create_task(_hit(hit, mesh, away_s), name=f"hit {hit.name}")
        if options.overlap:
            healing[hit.service] = task
        else:
            await task
    await asyncio.gather(*healing.values())


async def _hit(hit: Hit, mesh: Mesh, away_s: float) -> None:
    try:
        process = await mesh.process(hit.name)
        hit.at = hit.until = time.monotonic()
        if hit.kind == "kill":
            process.send_signal(signal.SIGKILL)
            await mesh.process(hit.name, other_than=process.pid)
        else:
            await _suspend(process, away_s)
            hit.until = time.monotonic()
        await mesh.whole()
    except (MeshFailed, psutil.NoSuchProcess):
        return  # the checker says so: the fault has no time of healing
    hit.healed_at = time.monotonic()


async def _suspend(process: psutil.Process, away_s: float) -> None:
    process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(away_s)
    finally:
        process.send_signal(signal.SIGCONT)
