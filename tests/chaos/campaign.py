"""One campaign from start to verdict: streams and faults side by side, then the journals."""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos import journals as written
from tests.chaos.checker import check
from tests.chaos.client import Http, open_session, run_stream
from tests.chaos.collect import Collector
from tests.chaos.hits import perform, plan_hits
from tests.chaos.journals import Asked, Health, Hit, Journals, Reading, Violation
from tests.chaos.mesh import Mesh, logged_events
from tests.chaos.options import Options
from tests.chaos.report import Told, render
from tests.chaos.streams import StreamPlan, plan_streams

JOURNALS = "journals.gz"
TICK_S = 0.05
LOGGED = frozenset({"owner.took_over", "owner.fenced", "branch.superseded"})


@dataclass(frozen=True, slots=True)
class Result:
    journals: Journals
    violations: list[Violation]
    report: str


async def run(options: Options) -> Result:
    """Raises MeshFailed when the mesh doesn't come up; journals and report go to the folder."""
    began = time.monotonic()
    random = Random(options.seed)
    plans = plan_streams(random, options.streams)
    asked: list[Asked] = []
    readings: list[Reading] = []
    async with Mesh(options) as mesh:
        hits = plan_hits(random, options, mesh.names)
        _say(f"the mesh runs at {mesh.url}; seed {options.seed}")
        async with open_session() as session:
            http = Http(session, mesh.url)
            async with asyncio.TaskGroup() as group:
                hitting = group.create_task(perform(hits, mesh, options, random))
                group.create_task(_stream_all(http, plans, hits, hitting, asked, readings, options))
            probe, ended = await _probe(http, random)
        _say("all streams have ended; collecting")
        journals = await _collect(mesh, options.seed, asked, readings, hits, probe, ended)
    violations = check(journals)
    told = Told(time.monotonic() - began, _shown(options), logged_events(mesh.data_dir, LOGGED))
    report = render(journals, violations, told)
    written.save(journals, options.folder / JOURNALS)
    (options.folder / "report.md").write_text(report, encoding="utf-8")
    return Result(journals, violations, report)


async def _stream_all(
    http: Http,
    plans: Sequence[StreamPlan],
    hits: list[Hit],
    hitting: "asyncio.Task[None]",
    asked: list[Asked],
    readings: list[Reading],
    options: Options,
) -> None:
    """Start streams at the faults' pace, so that every fault meets running streams."""
    running: set[asyncio.Task[None]] = set()
    last_count, last_at = 0, time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, plan in enumerate(plans):
            while True:
                done = sum(hit.at > 0 for hit in hits)
                if done != last_count:
                    last_count, last_at = done, time.monotonic()
                    _say(f"{done} of {len(hits)} faults, {number} of {len(plans)} streams")
                part = min(1.0, (time.monotonic() - last_at) / options.usual_hit_s)
                due = len(plans) * (done + part) / max(1, len(hits))
                if (number < due or hitting.done()) and len(running) < options.concurrency:
                    break
                await asyncio.sleep(TICK_S)
            task = group.create_task(run_stream(http, plan, asked, readings))
            running.add(task)
            task.add_done_callback(running.discard)


async def _probe(http: Http, random: Random) -> tuple[str, str]:
    """One more stream, which must be as good as the first: its id and how it ended."""
    plan = next(
        plan for plan in plan_streams(random, 1_000) if not plan.second and not plan.cancel_after_s
    )
    asked: list[Asked] = []
    readings: list[Reading] = []
    await run_stream(http, plan, asked, readings)
    if not readings[0].events:
        return plan.sid, "nothing"
    return plan.sid, str(written.shown(readings[0].events[-1]).get("type"))


async def _collect(
    mesh: Mesh,
    seed: int,
    asked: list[Asked],
    readings: list[Reading],
    hits: list[Hit],
    probe: str,
    ended: str,
) -> Journals:
    collector = Collector(mesh)
    backlog, drained_s = await collector.drained()
    calls, dropped = await collector.calls()
    rows, pieces = await collector.rows()
    return Journals(
        seed=seed,
        asked=asked,
        readings=readings,
        calls=[call for call in calls if call.sid != probe],
        log=await collector.log([each.sid for each in asked]),
        rows=[row for row in rows if row.sid != probe],
        hits=hits,
        health=Health(
            backlog=backlog,
            pieces_left=pieces,
            probe=ended,
            drained_s=drained_s,
            calls_dropped=dropped,
        ),
    )


def _shown(options: Options) -> str:
    return (
        f"{options.kills} faults, {options.streams} streams, {options.copies} of each service, "
        f"{options.nats_nodes} NATS node(s), lease {options.ack_wait_s:g} s"
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
