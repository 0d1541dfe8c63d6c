"""The faults a request can ask for: one table, and the count of who has failed how often."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum


class Stage(Enum):
    """Where in an answer a fault strikes."""

    INSTEAD = "instead of the answer"
    FIRST = "before the first token"
    AT = "before token `fault_at`"
    END = "at the end of the stream"


@dataclass(frozen=True, slots=True)
class Fault:
    stage: Stage
    does: str
    """What a streaming client meets on the wire."""


FAULTS: dict[str, Fault] = {
    "429": Fault(Stage.INSTEAD, "429 with `Retry-After: retry_after_s` (default 1)"),
    "500": Fault(Stage.INSTEAD, "500 with an OpenAI error"),
    "503": Fault(Stage.INSTEAD, "503 with an OpenAI error; `Retry-After` if `retry_after_s`"),
    "401": Fault(Stage.INSTEAD, "401 as for a wrong key"),
    "refuse": Fault(Stage.INSTEAD, "connection reset without an HTTP answer"),
    "wrong_content_type": Fault(Stage.INSTEAD, "200 with a `text/html` page"),
    "empty": Fault(Stage.INSTEAD, "200, a stream of only `[DONE]`"),
    "role_only": Fault(Stage.INSTEAD, "role and empty deltas, a finish reason, `[DONE]`"),
    "slow_first": Fault(Stage.FIRST, "headers, then silence for `fault_s` (default 30)"),
    "keepalive_first": Fault(Stage.FIRST, "the same, with SSE comments every `keepalive_s`"),
    "stall": Fault(Stage.AT, "silence on an open connection for `fault_s` (default: for ever)"),
    "stall_keepalive": Fault(Stage.AT, "the same, with SSE comments every `keepalive_s`"),
    "cut": Fault(Stage.AT, "clean end of the body: no finish reason, no `[DONE]`"),
    "reset": Fault(Stage.AT, "TCP reset"),
    "bad_json": Fault(Stage.AT, "one event of broken JSON, then the rest"),
    "bad_utf8": Fault(Stage.AT, "one event with bytes that are not UTF-8, then the rest"),
    "giant_chunk": Fault(Stage.AT, "one delta of `giant_bytes` (default 2 MiB), then the rest"),
    "error_in_stream": Fault(Stage.AT, '`data: {"error": …}`, then the end without `[DONE]`'),
    "cut_no_done": Fault(Stage.END, "finish reason, but no `[DONE]`"),
    "double_finish": Fault(Stage.END, "a second finish chunk with another reason"),
    "data_after_finish": Fault(Stage.END, "a content chunk after the finish chunk"),
    "usage_missing": Fault(Stage.END, "no usage chunk though `include_usage` asked for it"),
}


class FaultLedger:
    """Counts failures per key, so that `fault_times` lets the N+1st request succeed.

    Holds at most `max_keys`; the key not used for longest is forgotten first.
    """

    def __init__(self, max_keys: int = 10_000) -> None:
        self._failed: OrderedDict[str, int] = OrderedDict()
        self._max_keys = max_keys

    def strikes(self, key: str, times: int | None) -> bool:
        """Whether this request fails; counts it if so. No limit: it always does."""
        if times is None:
            return True
        failed = self._failed.pop(key, 0)
        self._failed[key] = min(failed + 1, times)
        if len(self._failed) > self._max_keys:
            self._failed.popitem(last=False)
        return failed < times

    def forget(self) -> None:
        self._failed.clear()
