"""One reader of one stream: replay from the log, then the live tail, without a gap between them.

The tail is subscribed first and buffered; the log is read; then the buffer goes on where the log
ended. Whatever was missed, for want of room or on the way, is read from the log again. So the
buffer may overflow and messages may be lost, and still every event comes once and in order.

It knows neither HTTP nor timers: `tick` is called from outside, and `batches` yields bytes.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Protocol

from services.edge.cursor import Cursor, Gap
from services.edge.sse import KEEP_ALIVE
from shared.actor import Mailbox
from shared.bus import BusError, LogEntry
from shared.events import Event, decode_record

MAX_BATCH_BYTES = 64 * 1024
"""What is ready is joined up to this size; a single larger event still goes in one piece."""
MAX_READ_BYTES = 256 * 1024
ENTRY_OVERHEAD_BYTES = 200
"""Memory of a buffered record besides its payload."""
MAX_HOLES = 3


class Interest(Protocol):
    """What `tail` returns: live records come until it is closed."""

    async def close(self) -> None: ...


class ReadableLog(Protocol):
    """What a reader needs of shared.bus.EventLog."""

    async def tail(self, sid: str, handler: Callable[[LogEntry], None]) -> Interest: ...

    async def read_some(
        self, sid: str, *, after_seq: int = 0, max_bytes: int | None = None
    ) -> tuple[list[LogEntry], bool]: ...


class Dialect(Protocol):
    """A projection of events to what one kind of client understands."""

    def skip(self, event: Event) -> None: ...

    def encode(self, n: int, event: Event) -> bytes: ...


class LogExpired(Exception):
    """Records that this reader still needs have left the log."""


class Reader:
    """Use: `open`, then iterate over `batches` to the end, then `close`."""

    def __init__(
        self,
        log: ReadableLog,
        sid: str,
        after: int,
        dialect: Dialect,
        *,
        buffer_bytes: int,
        heartbeat_s: float,
    ) -> None:
        self.sid = sid
        self.rereads = 0
        """How often the log was read again after the first replay."""
        self._log = log
        self._after = after
        self._dialect = dialect
        self._heartbeat_s = heartbeat_s
        self._cursor = Cursor()
        # The other half is for what is being encoded and written meanwhile.
        self._buffer: Mailbox[LogEntry] = Mailbox(
            max_items=buffer_bytes // ENTRY_OVERHEAD_BYTES, max_weight=buffer_bytes // 2
        )
        self._interest: Interest | None = None
        self._wake = asyncio.Event()
        self._behind = True
        """The log has to be read; until then, live records need not be kept."""
        self._held = False
        """Reading again can't help before the next tick."""
        self._gaps = 0
        self._holes = 0
        self._stopped = False
        self._beat_due = False
        # Set on the hot path, turned into times by the next tick.
        self._heard = self._wrote = False
        self._heard_at = self._wrote_at = asyncio.get_running_loop().time()

    @property
    def last_seq(self) -> int:
        return self._cursor.last_seq

    @property
    def finished(self) -> bool:
        """The terminal has come; the client had it if it took everything."""
        return self._cursor.finished

    async def open(self) -> None:
        """Subscribe the tail. Whoever then asks the log for anything misses nothing after it."""
        self._interest = await self._log.tail(self.sid, self._on_live)

    async def close(self) -> None:
        self._stopped = True
        if self._interest is not None:
            await self._interest.close()

    def stop(self) -> None:
        """End `batches` soon, without a terminal: the client can go on elsewhere."""
        self._stopped = True
        self._wake.set()

    def reread(self) -> None:
        """The log has records that did not come by the tail."""
        self._behind = True
        self._held = False
        self._wake.set()

    def tick(self, now: float) -> None:
        """Time has passed: a keep-alive may be due, a read that failed may be tried again."""
        if self._heard:
            self._heard, self._heard_at = False, now
        if self._wrote:
            self._wrote, self._wrote_at = False, now
        elif now - self._wrote_at >= self._heartbeat_s:
            self._wrote_at = now
            self._beat_due = True
            self._wake.set()
        if self._behind and self._held:
            self._held = False
            self._wake.set()

    def silent_s(self, now: float) -> float:
        """Seconds since the last record, or since the last check that found nothing."""
        return now - self._heard_at

    def checked(self, now: float) -> None:
        """The log's end was compared with `last_seq`."""
        self._heard_at = now

    async def batches(self) -> AsyncGenerator[bytes, None]:
        """Whole events, joined, up to and including the terminal, and keep-alives.

        Ends early only after `stop`. Raises LogExpired when the log has lost what comes next, and
        ValueError for a record that can't be read.
        """
        while not (self._cursor.finished or self._stopped):
            if self._behind and not self._held:
                async for batch in self._replay():
                    yield batch
                continue
            await self._wake.wait()
            self._wake.clear()
            if entries := self._buffer.take_now():
                for batch in self._encode(entries):
                    yield batch
            if self._beat_due:
                self._beat_due = False
                yield KEEP_ALIVE

    async def _replay(self) -> AsyncGenerator[bytes, None]:
        self._behind = False  # from here on the buffer keeps what the read may not see
        self.rereads += self._cursor.last_seq > 0
        more = True
        while more and not (self._behind or self._stopped):
            try:
                entries, more = await self._log.read_some(
                    self.sid, after_seq=self._cursor.last_seq, max_bytes=MAX_READ_BYTES
                )
            except BusError:
                self._behind = self._held = True
                return
            known = self._cursor.last_seq
            for batch in self._encode(entries):
                yield batch
            if self._cursor.last_seq > known:
                self._holes = 0
            elif entries:  # only records after a hole
                self._holes += 1
                if self._holes >= MAX_HOLES:
                    raise LogExpired

    def _on_live(self, entry: LogEntry) -> None:
        if self._behind:
            return
        if not self._buffer.offer(entry, len(entry.payload) + ENTRY_OVERHEAD_BYTES):
            self._buffer.take_now()
            self._behind = True
        self._wake.set()

    def _encode(self, entries: Iterable[LogEntry]) -> Iterable[bytes]:
        """Batches of the events in `entries` that the client has not seen, until a gap."""
        cursor, dialect, after = self._cursor, self._dialect, self._after
        ready: list[bytes] = []
        size = 0
        for entry in entries:
            if entry.seq <= cursor.last_seq:
                continue
            try:
                n, events = cursor.take(entry.seq, decode_record(entry.payload))
            except Gap:
                self._on_gap()
                break
            self._gaps = 0
            self._heard = True
            for event in events:
                if n > after:
                    encoded = dialect.encode(n, event)
                    if size and size + len(encoded) > MAX_BATCH_BYTES:
                        self._wrote = True
                        yield b"".join(ready)
                        ready.clear()
                        size = 0
                    ready.append(encoded)
                    size += len(encoded)
                else:
                    dialect.skip(event)
                n += 1
            if cursor.finished:
                break
        if size:
            self._wrote, self._beat_due = True, False
            yield b"".join(ready)

    def _on_gap(self) -> None:
        # Right after a gap the log is read at once. If a lagging replica does not have the record
        # yet either, wait for a tick between tries.
        self._gaps += 1
        self._behind = True
        self._held = self._gaps > 1
