"""nats-py's client with two shortcuts on the way of every token.

Between the parser and a handler nats-py puts a queue and a task for each subscription, parses the
headers of every message, and checks each header it sends. Here a handler is called where the
message is parsed, headers are parsed when somebody asks, and ours are written as they are. On two
cores: a message with headers received in 1.5 instead of 13.7 µs, one without in 2.3 instead of 6.5.

A handler must not wait and must not block; while it runs, nothing else is read.
"""

from collections.abc import Callable
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.protocol import command

log = structlog.get_logger()

_VERSION = b"NATS/1.0"


class Received:
    """A message as a handler is given it."""

    __slots__ = ("_header_block", "data", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, header_block: bytes | None) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self._header_block = header_block

    @property
    def headers(self) -> dict[str, str] | None:
        """An inline status is the header `Status`, its text `Description`."""
        return parse_headers(self._header_block) if self._header_block else None


def parse_headers(block: bytes) -> dict[str, str]:
    """The headers of a NATS message: `NATS/1.0[ status[ text]]`, then `name: value` lines."""
    first, *lines = block.decode("utf-8", "replace").split("\r\n")
    headers = {}
    status, _, description = first[len(_VERSION) :].strip().partition(" ")
    if status:
        headers["Status"] = status
    if description:
        headers["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    return headers


class DirectClient(Client):
    """`direct` maps the number of a subscription to its handler."""

    def __init__(self) -> None:
        super().__init__()
        self.direct: dict[int, Callable[[Received], None]] = {}

    async def subscribe_directly(
        self, subject: str, queue: str, handler: Callable[[Received], None]
    ) -> Subscription:
        number = self._sid + 1  # a message may come before `subscribe` returns
        self.direct[number] = handler
        try:
            return await self.subscribe(subject, queue=queue)
        except BaseException:
            del self.direct[number]
            raise

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        handler = self.direct.get(sid)
        if handler is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            handler(Received(subject.decode(), reply.decode(), bytes(data), headers or None))
        except Exception:
            # An exception would end nats-py's read loop, and with it everything on the connection.
            log.exception("bus.handler_failed")

    async def _send_publish(
        self,
        subject: str,
        reply: str,
        payload: bytes,
        payload_size: int,
        headers: dict[str, Any] | None,
    ) -> None:
        if headers is None:
            await super()._send_publish(subject, reply, payload, payload_size, None)
            return
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        block = b"%b\r\n%b\r\n" % (_VERSION, lines.encode())
        await self._send_command(command.hpub_cmd(subject, reply, block, payload))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()
