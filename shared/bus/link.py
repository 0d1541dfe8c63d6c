"""What every service opens first: one connection with a publisher, the log and a presence on it."""

from collections.abc import Callable
from typing import Any

from shared.bus.connection import Bus
from shared.bus.log import EventLog
from shared.bus.presence import Presence
from shared.bus.publisher import Publisher
from shared.bus.queue import WorkQueue
from shared.bus.streams import declare_streams
from shared.settings import Settings
from shared.subjects import Subjects


class Link:
    """One service instance's place in the mesh. Build it with `await Link.open(...)`."""

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        subjects: Subjects,
        publisher: Publisher,
        presence: Presence,
    ) -> None:
        self._settings = settings
        self.bus = bus
        self.subjects = subjects
        self.publisher = publisher
        self.log = EventLog(bus, publisher, subjects)
        self._presence = presence

    @classmethod
    async def open(
        cls,
        settings: Settings,
        service: str,
        instance: str,
        stats: Callable[[], dict[str, Any]],
    ) -> "Link":
        """Connect and declare the mesh's streams. Raises BusError."""
        bus = await Bus.connect(settings.nats_url, instance)
        subjects = Subjects(settings.prefix, settings.event_shards)
        publisher = Publisher(bus)
        presence = Presence(bus, subjects, service, instance, stats)
        try:
            await declare_streams(bus, subjects, settings)
            await publisher.start()
        except BaseException:
            await bus.close()
            raise
        return cls(settings, bus, subjects, publisher, presence)

    def work_queue(self, stream: str, kind: str, consumer: str, *, slots: int) -> WorkQueue:
        """The queue of all items of one kind of subject, with the mesh's lease and limits."""
        return WorkQueue(
            self.bus,
            stream=stream,
            consumer=consumer,
            subject=self.subjects.all(kind),
            slots=slots,
            ack_wait_s=self._settings.ack_wait_s,
            max_deliver=self._settings.max_deliver,
        )

    async def announce(self) -> None:
        """Answer $SRV.PING, INFO and STATS from now on: the service is ready for work."""
        await self._presence.start()

    async def withdraw(self) -> None:
        """Answer no more: the service takes nothing new."""
        await self._presence.close()

    async def close(self) -> None:
        await self.publisher.close()
        await self.bus.close()
