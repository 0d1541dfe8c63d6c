"""Durable cancel marks in a KV bucket; they outlive every process and expire with the log."""

from nats.js.kv import KeyValue

from shared.bus.connection import NATS_ERRORS, Bus, BusError
from shared.bus.leader import leader_get
from shared.bus.patience import ELECTION_S, patiently
from shared.subjects import Subjects

TRY_S = 2.0


class CancelMarks:
    """Sets and reads cancel marks. Every method raises BusError when NATS doesn't answer."""

    def __init__(self, bus: Bus, subjects: Subjects) -> None:
        self._bus = bus
        self._js = bus.jetstream(timeout_s=TRY_S)
        self._subjects = subjects
        self._opened: KeyValue | None = None

    async def set(self, sid: str, reason: str) -> None:
        """Mark a stream as cancelled; setting a mark again changes nothing that matters."""

        async def put() -> None:
            try:
                bucket = await self._bucket()
                await bucket.put(sid, reason.encode())
            except NATS_ERRORS as error:
                raise BusError(f"the cancel mark was not stored: {error}") from error

        await patiently(put, ELECTION_S)

    async def get(self, sid: str) -> str | None:
        """The reason a stream was cancelled with, or None.

        From the leader: whoever is told that a mark was set must see it.
        """
        query = {"last_by_subj": self._subjects.cancel_mark(sid)}
        stored = await leader_get(self._bus, self._subjects.cancel_stream, query)
        return None if stored is None else stored.payload.decode()

    async def _bucket(self) -> KeyValue:
        if self._opened is None:
            self._opened = await self._js.key_value(self._subjects.cancel_bucket)
        return self._opened
