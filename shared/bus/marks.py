"""Durable cancel marks in a KV bucket; they outlive every process and expire with the log."""

from nats.js.errors import KeyNotFoundError, NotFoundError
from nats.js.kv import KeyValue

from shared.bus.connection import NATS_ERRORS, Bus, BusError
from shared.subjects import Subjects


class CancelMarks:
    """Sets and reads cancel marks. Every method raises BusError when NATS doesn't answer."""

    def __init__(self, bus: Bus, subjects: Subjects) -> None:
        self._js = bus.jetstream()
        self._name = subjects.cancel_bucket
        self._opened: KeyValue | None = None

    async def set(self, sid: str, reason: str) -> None:
        """Mark a stream as cancelled; setting a mark again changes nothing that matters."""
        try:
            bucket = await self._bucket()
            await bucket.put(sid, reason.encode())
        except NATS_ERRORS as error:
            raise BusError(f"the cancel mark was not stored: {error}") from error

    async def get(self, sid: str) -> str | None:
        """The reason a stream was cancelled with, or None."""
        try:
            bucket = await self._bucket()
            entry = await bucket.get(sid)
        except (KeyNotFoundError, NotFoundError):
            return None
        except NATS_ERRORS as error:
            raise BusError(f"the cancel mark can't be read: {error}") from error
        return (entry.value or b"").decode()

    async def _bucket(self) -> KeyValue:
        if self._opened is None:
            self._opened = await self._js.key_value(self._name)
        return self._opened
