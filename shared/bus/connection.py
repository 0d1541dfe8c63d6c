"""One NATS connection, with sending that never waits and a watch over a silent death."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog
from nats import errors as nats_errors
from nats.aio.client import Client, Server
from nats.aio.subscription import Subscription as NatsSubscription
from nats.js import JetStreamContext
from nats.js import errors as js_errors

from shared.bus.client import DirectClient
from shared.settings import mask_url

log = structlog.get_logger()

MAX_OUTBOX_BYTES = 32 * 1024 * 1024
"""Beyond this, `send` drops and counts: every protocol of the mesh sends again."""

RECONNECT_WAIT_S = 0.2
RTT_EVERY_S = 1.0
RTT_TIMEOUT_S = 2
"""A server that hangs is left within three seconds, before the leases of work items run out."""


class BusError(Exception):
    """NATS can't be reached, or didn't answer in time."""


class Message(Protocol):
    """What a handler is given."""

    subject: str
    reply: str
    data: bytes

    @property
    def headers(self) -> dict[str, str] | None: ...


Handler = Callable[[Message], None]


class Subscription:
    """Interest in a subject until `close`."""

    def __init__(self, nc: DirectClient, inner: NatsSubscription) -> None:
        self._nc = nc
        self._inner = inner

    async def close(self) -> None:
        """Stop receiving: the handler is not called again."""
        self._nc.direct.pop(self._inner._id, None)
        try:
            await self._inner.unsubscribe()
        except (nats_errors.ConnectionClosedError, nats_errors.BadSubscriptionError):
            return  # nothing is left to unsubscribe from


class Bus:
    """A connection to NATS. Build it with `await Bus.connect(...)`."""

    def __init__(self, nc: DirectClient, name: str) -> None:
        self._nc = nc
        self.name = name
        self.dropped = 0
        """Messages that were not sent because the outbox was full, or the connection long gone."""
        self._outbox: deque[tuple[str, bytes, str, dict[str, str] | None]] = deque()
        self._outbox_bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._server = ""
        """Host and port of the server in use, or that was last in use."""
        self._on_reconnect: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def connect(cls, url: str, name: str, *, timeout_s: float = 5.0) -> "Bus":
        """Connect, and reconnect for ever afterwards.

        Raises BusError when no server answers within `timeout_s`.
        """
        nc = DirectClient()
        bus = cls(nc, name)
        try:
            async with asyncio.timeout(timeout_s):
                await nc.connect(
                    servers=[part.strip() for part in url.split(",")],
                    name=name,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # annotated int
                    ping_interval=5,
                    max_outstanding_pings=2,
                    allow_reconnect=True,
                    skip_subject_validation=True,
                    error_cb=bus._error,
                    reconnect_to_server_handler=bus._choose_server,
                    disconnected_cb=bus._disconnected,
                    reconnected_cb=bus._reconnected,
                )
        except (TimeoutError, OSError, nats_errors.Error) as error:
            await nc.close()
            shown = mask_url(url)
            raise BusError(f"can't reach NATS at {shown}: {error or 'no answer'}") from error
        bus._remember_server()
        loop = asyncio.get_running_loop()
        bus._tasks = [
            loop.create_task(bus._write(), name=f"{name}.write"),
            loop.create_task(bus._watch(), name=f"{name}.watch"),
        ]
        return bus

    @property
    def connected(self) -> bool:
        return self._nc.is_connected

    @property
    def max_payload(self) -> int:
        """The server's limit for one message, in bytes."""
        return self._nc.max_payload

    @property
    def client(self) -> Client:
        """The nats-py client, for the other modules of this package alone."""
        return self._nc

    def jetstream(self, *, timeout_s: float = 5) -> JetStreamContext:
        """The nats-py JetStream API, for the other modules of this package alone."""
        return self._nc.jetstream(timeout=timeout_s)

    def inbox(self) -> str:
        return self._nc.new_inbox()

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` after every reconnect; until then, messages may have been missed."""
        self._on_reconnect.append(callback)

    def send(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Queue a message for sending, in order; at most once. Never waits and never raises."""
        if self._outbox_bytes > MAX_OUTBOX_BYTES:
            self.dropped += 1
            return
        self._outbox.append((subject, payload, reply, headers))
        self._outbox_bytes += len(payload)
        self._wake.set()
        self._idle.clear()

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Call `handler` for every message, one after another, as it is read.

        What it raises is logged. It must not block: nothing else is read meanwhile.
        """
        return Subscription(self._nc, await self._nc.subscribe_directly(subject, queue, handler))

    async def request(self, subject: str, payload: bytes, *, timeout_s: float = 2.0) -> Message:
        """Ask and wait for one answer. Raises BusError when there is none."""
        try:
            return await self._nc.request(subject, payload, timeout=timeout_s)
        except (nats_errors.Error, js_errors.Error) as error:
            raise BusError(f"no answer on {subject}: {type(error).__name__}") from error

    async def flush(self, timeout_s: float = 2.0) -> None:
        """Return when the server has processed all that was sent. Raises BusError if it doesn't."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
                await self._nc.flush(timeout=max(1, int(timeout_s)))
        except (TimeoutError, nats_errors.Error) as error:
            raise BusError("NATS did not answer a flush") from error

    async def close(self) -> None:
        """Send what is queued, then close. Never raises for a server that is gone."""
        if self.connected:
            try:
                await self.flush()
            except BusError:
                log.warning("bus.close_unflushed", bus=self.name, queued=len(self._outbox))
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._nc.close()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                subject, payload, reply, headers = self._outbox.popleft()
                self._outbox_bytes -= len(payload)
                try:
                    await self._nc.publish(subject, payload, reply, headers)
                except nats_errors.Error as error:
                    self.dropped += 1
                    log.warning("bus.send_failed", bus=self.name, error=type(error).__name__)
            self._idle.set()

    async def _watch(self) -> None:
        """nats-py's read loop can die on an unexpected exception and still say it is connected."""
        while True:
            await asyncio.sleep(RTT_EVERY_S)
            if not self._nc.is_connected:
                continue
            try:
                await self._nc.rtt(timeout=RTT_TIMEOUT_S)
            except (nats_errors.Error, TimeoutError, OSError) as error:
                if self._nc.is_connected:
                    log.warning("bus.stale", bus=self.name, error=type(error).__name__)
                    self._abort()
                    await self._nc.force_reconnect()

    def _abort(self) -> None:
        """Drop what a server that hangs doesn't read: nats-py would wait until it has."""
        writer = getattr(self._nc._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    def _choose_server(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """Where to reconnect, and after which pause: to the one that was just lost last of all. One
        that hangs takes connections, and two seconds are gone before it is known for what it is."""
        choice = min(
            servers,
            key=lambda each: (each.reconnects, each.uri.netloc == self._server, random.random()),  # noqa: S311
        )
        return choice, RECONNECT_WAIT_S if choice.reconnects else 0.0

    def _remember_server(self) -> None:
        url = self._nc.connected_url
        self._server = url.netloc if url is not None else ""

    async def _error(self, error: Exception) -> None:
        if isinstance(error, nats_errors.SlowConsumerError):
            self.dropped += 1
        log.warning("bus.error", bus=self.name, error=type(error).__name__, detail=str(error)[:200])

    async def _disconnected(self) -> None:
        if not self._closing:
            log.warning("bus.disconnected", bus=self.name)

    async def _reconnected(self) -> None:
        self._remember_server()
        log.info("bus.reconnected", bus=self.name)
        for callback in self._on_reconnect:
            callback()


def status_of(headers: Mapping[str, str] | None) -> str:
    """The inline status code of a NATS control message, or an empty string."""
    return headers.get("Status", "") if headers else ""


NATS_ERRORS = (nats_errors.Error, js_errors.Error)
