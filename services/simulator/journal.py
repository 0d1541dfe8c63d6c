"""The append-only record of what was asked and what became of it, for tests and checkers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

End = Literal["finished", "client_closed", "fault", "drained"]
"""finished: everything was sent. client_closed: the client left before. fault: the script cut
the connection. drained: this server did."""

_KEPT = ("user-agent", "content-type", "idempotency-key", "traceparent", "x-request-id")
_KEPT_PREFIXES = ("x-braid-", "x-sim-", "x-stainless-retry")


class Entry(Struct, kw_only=True, gc=False):
    """One request. Times are seconds of this process's monotonic clock; null: not yet, or never.

    The body is kept byte for byte; keys are not kept.
    """

    id: str
    path: str
    headers: dict[str, str]
    body: bytes
    started_s: float
    model: str | None = None
    """As asked for, with its knobs."""
    stream: bool = False
    fault: str | None = None
    """The fault that this request met; null once `fault_times` is used up."""
    status: int | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    aborted: bool = False
    aborted_s: float | None = None
    ended: End | None = None
    tokens_sent: int = 0

    @property
    def sid(self) -> str | None:
        return self.headers.get("x-braid-stream")

    @property
    def attempt(self) -> str | None:
        return self.headers.get("x-braid-attempt")

    def public(self) -> dict[str, Any]:
        """For JSON: the body as the object it was, or as text if it was none."""
        shown: dict[str, Any] = {
            name: getattr(self, name) for name in self.__struct_fields__ if name != "body"
        }
        try:
            shown["body"] = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            shown["body"] = self.body.decode("utf-8", "replace")
        return {**shown, "sid": self.sid, "attempt": self.attempt}


class Journal:
    """Holds at most `max_entries` and `max_bytes` of bodies; the oldest go first, counted."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._entries: deque[Entry] = deque()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0
        self._changed = asyncio.Event()
        self.dropped = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def open(
        self, *, id: str, path: str, headers: Mapping[str, str], body: bytes, started_s: float
    ) -> Entry:
        entry = Entry(
            id=id, path=path, headers=kept_headers(headers), body=body, started_s=started_s
        )
        self._entries.append(entry)
        self._bytes += len(body)
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._bytes -= len(self._entries.popleft().body)
            self.dropped += 1
        self._notify()
        return entry

    def sent(self, entry: Entry, tokens: int, now_s: float) -> None:
        entry.tokens_sent += tokens
        if entry.first_token_s is None:
            entry.first_token_s = now_s
            self._notify()

    def close(self, entry: Entry, ended: End, now_s: float) -> None:
        """The first end counts; a client that hangs up after the last byte did not abort."""
        if entry.ended is not None:
            return
        entry.ended = ended
        if ended == "client_closed":
            entry.aborted = True
            entry.aborted_s = now_s
        else:
            entry.finished_s = now_s
        self._notify()

    def clear(self) -> None:
        self._entries.clear()
        self._bytes = self.dropped = 0
        self._notify()

    async def until(self, condition: Callable[[Entry], bool], timeout_s: float = 5.0) -> Entry:
        """The oldest entry for which the condition holds, as soon as there is one.

        Raises TimeoutError. The condition is looked at again when an entry opens, sends its
        first token or ends.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                changed = self._changed
                for entry in self._entries:
                    if condition(entry):
                        return entry
                await changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers a checker may want, in lower case; never a key."""
    lower = ((key.lower(), value) for key, value in headers.items())
    return {key: value for key, value in lower if key in _KEPT or key.startswith(_KEPT_PREFIXES)}
