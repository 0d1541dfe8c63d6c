"""From answers to steps: pacing and faults become a plan that the shell only has to play. Pure.

Every fault of the table in `faults` is one line or one branch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from services.simulator import errors
from services.simulator.answer import Answer
from services.simulator.chunks import DONE, ChunkWriter, Piece
from services.simulator.errors import ApiError
from services.simulator.faults import FAULTS, Stage
from services.simulator.knobs import Script
from services.simulator.pacing import Schedule
from services.simulator.steps import Hang, Head, Plan, Reset, Send

JSON = "application/json"
SSE = Head(200, "text/event-stream; charset=utf-8", (("Cache-Control", "no-cache"),))
PAGE = b"<!doctype html><title>Service</title><h1>Be right back</h1>\n"
SLOW_FIRST_S = 30.0
EMPTY_DELTAS = 3


def error_plan(error: ApiError) -> Plan:
    body = error.body()
    yield Head(error.status, JSON, tuple(error.headers.items()), len(body))
    yield Send(body)


def instead_plan(script: Script, model: str) -> Plan | None:
    """The plan of a fault that needs no answer at all; None if the script has none."""
    if (error := _refusal(script, model)) is not None:
        return error_plan(error)
    if script.fault == "refuse":
        return iter((Reset(),))
    if script.fault == "wrong_content_type":
        return iter((Head(200, "text/html; charset=utf-8", size=len(PAGE)), Send(PAGE)))
    return None


def _refusal(script: Script, model: str) -> ApiError | None:
    match script.fault:
        case "429":
            after_s = 1.0 if script.retry_after_s is None else script.retry_after_s
            return errors.rate_limited(model, after_s)
        case "500":
            return errors.server_error()
        case "503":
            return errors.overloaded(script.retry_after_s)
        case "401":
            return errors.wrong_key()
    return None


def whole_plan(body: bytes, script: Script, tokens: int) -> Plan:
    """An answer in one JSON body, due when a stream of it would have ended. Faults that only
    a stream can show have no effect."""
    due_s = _schedule(script).due_s(tokens - 1)
    fault = script.fault
    if fault == "empty":
        body = b""
    elif fault == "error_in_stream":
        body = errors.server_error().body()
    elif fault == "bad_json":
        body = body[: len(body) // 2]
    elif fault == "bad_utf8":
        middle = len(body) // 2
        body = body[:middle] + b"\xff\xfe" + body[middle:]
    if hang := _hang(script):
        yield Hang(hang.for_s)  # without comments, which would break the JSON
        due_s += hang.for_s or 0.0
    yield Head(200, JSON, size=len(body), due_s=due_s)
    if fault in ("cut", "reset"):
        yield Send(body[: len(body) // 2], due_s)
        yield Reset()
        return
    yield Send(body, due_s, tokens)


def stream_plan(
    given: Sequence[Answer], writer: ChunkWriter, script: Script, usage: dict[str, Any] | None
) -> Plan:
    """The answers as one event stream, their choices in turn; `usage` None: not asked for."""
    yield SSE
    if script.fault == "empty":
        yield Send(DONE)
        return
    yield from _Stream(given, writer, script, usage).steps()


@dataclass(slots=True)
class _Stream:
    given: Sequence[Answer]
    writer: ChunkWriter
    script: Script
    usage: dict[str, Any] | None
    offset_s: float = 0.0
    """What finite hangs have added to the schedule."""
    ended: bool = False

    def steps(self) -> Plan:
        script = self.script
        stage = FAULTS[script.fault].stage if script.fault else None
        schedule = _schedule(script)
        if stage is Stage.FIRST:
            yield from self._hang()
        start_s = due_s = self.offset_s + script.ttft_s
        for choice, answer in enumerate(self.given):
            yield Send(self.writer.role(choice, answer), start_s)
        if script.fault == "role_only":
            yield from self._nothing(start_s)
            return
        edge = script.fault_at if stage is Stage.AT else None
        for pieces in self._rounds(edge):
            first = max(piece.first for piece in pieces)
            if edge is not None and first >= edge:
                yield from self._strike(due_s)
                if self.ended:
                    return
                edge = None
            due_s = self.offset_s + schedule.due_s(first)
            for piece in pieces:
                yield Send(piece.data, due_s, piece.tokens)
        if edge is not None:
            yield from self._strike(due_s)
        if not self.ended:
            yield from self._end(due_s)

    def _rounds(self, edge: int | None) -> Iterator[list[Piece]]:
        """The next piece of every choice that still has one."""
        rows = [
            self.writer.pieces(choice, answer, self.script.tokens_per_chunk, edge)
            for choice, answer in enumerate(self.given)
        ]
        if len(rows) == 1:
            for piece in rows[0]:
                yield [piece]
            return
        for pieces in zip_longest(*rows):
            yield [piece for piece in pieces if piece is not None]

    def _strike(self, due_s: float) -> Plan:
        """A fault in mid-stream; `ended` says whether the stream is over."""
        writer = self.writer
        match self.script.fault:
            case "stall" | "stall_keepalive":
                yield from self._hang()
            case "cut":
                self.ended = True
            case "reset":
                self.ended = True
                yield Reset()
            case "error_in_stream":
                self.ended = True
                yield Send(b"data: " + errors.server_error().body() + b"\n\n", due_s)
            case "bad_json":
                yield Send(writer.broken_json(0), due_s)
            case "bad_utf8":
                yield Send(writer.broken_utf8(0), due_s)
            case "giant_chunk":
                yield Send(writer.text(0, "x" * self.script.giant_bytes), due_s, 1)

    def _nothing(self, due_s: float) -> Plan:
        for _ in range(EMPTY_DELTAS):
            for choice in range(len(self.given)):
                yield Send(self.writer.text(choice, ""), due_s)
        yield from self._end(due_s)

    def _end(self, due_s: float) -> Plan:
        fault = self.script.fault
        for choice, answer in enumerate(self.given):
            yield Send(self.writer.finish(choice, answer.finish), due_s)
        if fault == "double_finish":
            yield Send(self.writer.finish(0, "content_filter"), due_s)
        if fault == "data_after_finish":
            yield Send(self.writer.text(0, " and one more thing"), due_s, 1)
        if self.usage is not None and fault != "usage_missing":
            yield Send(self.writer.usage(self.usage), due_s)
        if fault != "cut_no_done":
            yield Send(DONE, due_s)

    def _hang(self) -> Plan:
        if hang := _hang(self.script):
            yield hang
            self.offset_s += hang.for_s or 0.0


def _hang(script: Script) -> Hang | None:
    keepalive_s = script.keepalive_s if "keepalive" in (script.fault or "") else None
    match script.fault:
        case "slow_first" | "keepalive_first":
            return Hang(SLOW_FIRST_S if script.fault_s is None else script.fault_s, keepalive_s)
        case "stall" | "stall_keepalive":
            return Hang(script.fault_s, keepalive_s)
    return None


def _schedule(script: Script) -> Schedule:
    return Schedule(script.ttft_s, script.gap_s, script.jitter, script.seed)
