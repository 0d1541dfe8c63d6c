"""Acknowledgements of all streams to one worker, together, once per turn of the event loop."""

import asyncio

from shared.bus import Bus
from shared.messages import Ack, msgpack_encoder


class Acks:
    """What was added in one turn of the event loop leaves as one message per worker."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[str, list[Ack]] = {}

    def add(self, worker: str, ack: Ack) -> None:
        """`worker` is the subject that the worker hears acknowledgements on."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.setdefault(worker, []).append(ack)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for worker, acks in waiting.items():
            self._bus.send(worker, msgpack_encoder.encode(acks))
