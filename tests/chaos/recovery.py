"""How long a fault was felt, from the journals alone. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.chaos.check_text import TOKEN
from tests.chaos.client import SILENCE_S
from tests.chaos.journals import Hit, Journals, Reading, shown

MEANING = {
    "edge": "fault to the `open` of the next connection",
    "merger": "fault to the claim of the stream's next owner",
    "merger's": "fault to the first event of the stream's next owner, whatever else was away",
    "worker": "fault to the first token of the branch's next attempt",
    "context": "fault, or acceptance if later, to the stream's first event",
    "nats": "fault to the next event of any running stream",
}


def recoveries(journals: Journals) -> dict[str, list[float]]:
    """Seconds for every victim, as `edge kill`: one for each stream that felt it."""
    found: dict[str, list[float]] = defaultdict(list)
    hits = [hit for hit in journals.hits if hit.at]
    first = {r.sid: r for r in journals.readings if r.reader == "first" and r.events}
    for reading in journals.readings:
        for hit, seconds in _edges(reading, hits):
            found[_name(hit)].append(seconds)
    for sid, reading in first.items():
        for hit, claim_s, event_s in _owners(journals, sid, reading, hits):
            lost = any(_is_down(other, hit.at, hit.at + claim_s) for other in hits)
            found[f"{_name(hit)} with nats" if lost else _name(hit)].append(claim_s)
            if event_s is not None:
                found[f"{hit.service}'s {hit.kind}"].append(event_s)
        for hit, seconds in _attempts(journals, sid, reading, hits):
            found[_name(hit)].append(seconds)
        for hit, seconds in _buses(reading, hits):
            found[_name(hit)].append(seconds)
    for asked in journals.asked:
        began = first.get(asked.sid)
        if began is None or asked.accepted_at is None:
            continue
        started_at = began.events[0].at
        for hit in hits:
            if (
                hit.service == "context"
                and hit.at <= started_at
                and asked.accepted_at <= max(hit.until, hit.healed_at or 0.0)
            ):
                found[_name(hit)].append(started_at - max(asked.accepted_at, hit.at))
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _name(hit: Hit) -> str:
    return f"{hit.service} {hit.kind}"


def _is_down(hit: Hit, begin: float, end: float) -> bool:
    """NATS had lost a node in this time, and perhaps its leaders."""
    return hit.service == "nats" and hit.at <= end and (hit.healed_at or hit.until) >= begin


def _latest(hits: list[Hit], services: tuple[str, ...], before: float) -> Hit | None:
    known = [hit for hit in hits if hit.service in services and hit.at <= before]
    return max(known, key=lambda hit: hit.at, default=None)


def _edges(reading: Reading, hits: list[Hit]) -> Iterator[tuple[Hit, float]]:
    broken = [c for c in reading.connections if c.end == "broken" and c.opened_at is not None]
    for connection in broken:
        ended_at = connection.ended_at or 0.0
        next_open = [
            c.opened_at
            for c in reading.connections
            if c.number > connection.number and c.opened_at is not None
        ]
        hit = _latest(hits, ("edge",), ended_at)
        felt_s = 1.0 if hit is not None and hit.kind == "kill" else 2 * SILENCE_S
        if hit is not None and next_open and ended_at - hit.at <= felt_s:
            yield hit, next_open[0] - hit.at


def _owners(
    journals: Journals, sid: str, reading: Reading, hits: list[Hit]
) -> Iterator[tuple[Hit, float, float | None]]:
    for record in journals.log.get(sid, []):
        hit = _latest(hits, ("merger",), record.at) if record.at is not None else None
        if hit is not None and record.at is not None:
            seen_at = next((seen.at for seen in reading.events if seen.n >= record.n_first), None)
            yield hit, record.at - hit.at, None if seen_at is None else seen_at - hit.at


def _attempts(
    journals: Journals, sid: str, reading: Reading, hits: list[Hit]
) -> Iterator[tuple[Hit, float]]:
    known: dict[int, int] = {}
    for seen in reading.events:
        if '"type":"delta"' not in seen.raw:
            continue
        event = shown(seen)
        token = TOKEN.match(event.get("text", ""))
        if token is None:
            continue
        attempt = int(token[3])
        if known.get(event["branch"], -1) < attempt:
            known[event["branch"]] = attempt
            hit = _latest(hits, ("worker",), seen.at)
            if attempt >= 1_000 and hit is not None:
                yield hit, seen.at - hit.at


def _buses(reading: Reading, hits: list[Hit]) -> Iterator[tuple[Hit, float]]:
    for hit in hits:
        if hit.service == "nats" and reading.events[0].at < hit.at < reading.events[-1].at:
            yield hit, next(seen.at for seen in reading.events if seen.at > hit.at) - hit.at
