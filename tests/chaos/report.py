"""A campaign in a page of Markdown. Pure, but for what it says of the machine."""

import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

from tests.chaos.checker import INVARIANTS
from tests.chaos.journals import Journals, Violation, terminal_of
from tests.chaos.recovery import MEANING, quantile, recoveries

SHOWN_VIOLATIONS = 50
LIMITS = (
    (("merger kill",), "take-over from a killed owner, p99", 0.99, 8.0),
    (("merger stop",), "take-over from a stopped owner, p99", 0.99, 8.0),
    (("edge kill",), "resume after a killed edge, p99", 0.99, 2.0),
    (("nats kill", "nats stop"), "loss of a NATS node, worst", 1.0, 15.0),
)
"""Faults, in words, quantile, seconds: the lease is 5 s."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the journals don't have."""

    duration_s: float
    settings: str
    logged: dict[str, int]


def render(journals: Journals, violations: Sequence[Violation], told: Told) -> str:
    verdict = f"**{len(violations)} violations**" if violations else "no violation"
    parts = [
        f"# Chaos campaign, seed {journals.seed}: {verdict}\n",
        _figures(journals, violations),
        "## Run\n\n" + _run(journals, told),
        "## Faults\n\n" + _faults(journals),
        "## Invariants\n\n" + _invariants(violations),
        "## Ends\n\n" + _ends(journals),
        "## Recovery\n\n" + _recovery(journals),
    ]
    if violations:
        shown = [f"- {violation}" for violation in violations[:SHOWN_VIOLATIONS]]
        if len(violations) > SHOWN_VIOLATIONS:
            shown.append(f"- … and {len(violations) - SHOWN_VIOLATIONS} more")
        parts.append("## Violations\n\n" + "\n".join(shown) + "\n")
    return "\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _figures(journals: Journals, violations: Sequence[Violation]) -> str:
    """What was promised, and what was measured."""
    found = recoveries(journals)
    zombies = [hit for hit in journals.hits if hit.kind == "stop" and hit.at]
    stale = sum(violation.invariant == "stale" for violation in violations)
    ended = sum(terminal_of(journals.log.get(a.sid, [])) is not None for a in journals.asked)
    rows: list[tuple[object, ...]] = [
        ("violations", 0, len(violations)),
        ("streams with a terminal", len(journals.asked), ended),
        (f"stale writes accepted of {len(zombies)} zombies", 0, stale),
    ]
    for names, what, share, limit_s in LIMITS:
        values = [value for name in names for value in found.get(name, [])]
        measured = f"{quantile(values, share):.2f} s" if values else "not felt"
        missed = " **missed**" if values and quantile(values, share) > limit_s else ""
        rows.append((what, f"≤ {limit_s:g} s", measured + missed))
    return table(("figure", "promised", "measured"), rows)


def _run(journals: Journals, told: Told) -> str:
    connections = sum(len(reading.connections) for reading in journals.readings)
    resumed = sum(
        connection.status == 200
        for reading in journals.readings
        for connection in reading.connections[1:]
    )
    delivered = sum(len(reading.events) for reading in journals.readings)
    committed = sum(len(r.events) for records in journals.log.values() for r in records)
    stops = [hit for hit in journals.hits if hit.kind == "stop"]
    memory_gib = psutil.virtual_memory().total / 2**30
    return table(
        ("", ""),
        [
            ("streams", len(journals.asked)),
            ("branches generated", len({(c.sid, c.branch) for c in journals.calls})),
            ("upstream calls", len(journals.calls)),
            ("events committed", committed),
            ("events delivered", delivered),
            ("readers", len(journals.readings)),
            ("connections", connections),
            ("of them resumed", resumed),
            ("zombies (stopped past the lease, continued)", len(stops)),
            ("of them mergers", sum(hit.service == "merger" for hit in stops)),
            *((f"`{name}` in the logs", count) for name, count in told.logged.items()),
            ("queues empty after", f"{journals.health.drained_s:.1f} s"),
            ("duration", f"{told.duration_s:.0f} s"),
            ("settings", told.settings),
            (
                "machine",
                f"{platform.machine()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, "
                f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
            ),
        ],
    )


def _faults(journals: Journals) -> str:
    done = Counter((hit.service, hit.kind) for hit in journals.hits if hit.at)
    services = dict.fromkeys(service for service, _ in done)
    rows = [(service, done[service, "kill"], done[service, "stop"]) for service in services]
    total = ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))
    return table(("service", "kill -9", "SIGSTOP past the lease"), [*sorted(rows), total])


def _invariants(violations: Sequence[Violation]) -> str:
    counts = Counter(violation.invariant for violation in violations)
    return table(("invariant", "violations"), [(name, counts[name]) for name in INVARIANTS])


def _ends(journals: Journals) -> str:
    ends = Counter(
        (asked.mid_stream, terminal_of(journals.log.get(asked.sid, [])) or "none")
        for asked in journals.asked
    )
    kinds = sorted({kind for _, kind in ends})
    return table(
        ("policy", *kinds),
        [
            (policy, *(ends[policy, kind] for kind in kinds))
            for policy in ("restart", "continue", "fail")
        ],
    ) + _seams(journals)


def _seams(journals: Journals) -> str:
    kinds = Counter(
        event["type"]
        for records in journals.log.values()
        for record in records
        for event in record.events
    )
    seams = ("branch.reset", "branch.continued", "branch.error")
    return "\n" + ", ".join(f"{kinds[kind]} `{kind}`" for kind in seams) + "\n"


def _recovery(journals: Journals) -> str:
    found = recoveries(journals)
    rows = [
        (
            name,
            len(found[name]),
            *(f"{quantile(found[name], share):.2f}" for share in (0.5, 0.99, 1.0)),
            MEANING[name.split()[0]],
        )
        for name in sorted(found)
    ]
    return table(("fault", "felt by", "p50 s", "p99 s", "worst s", "from … to"), rows)
