"""The NATS services API ($SRV.PING, INFO, STATS; ADR-32), so that `nats micro ls` sees the mesh."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import EndpointStats, Service

from shared.bus.connection import Bus, Message
from shared.subjects import Subjects

VERSION = "0.1.0"


class Instance(Struct, frozen=True):
    """One answer to a ping: a running process of a service."""

    name: str = ""
    id: str = ""
    version: str = ""
    metadata: dict[str, str] | None = None


class Presence:
    """Announces one instance; `stats` is asked for whenever somebody asks for STATS."""

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        service: str,
        instance: str,
        stats: Callable[[], dict[str, Any]],
    ) -> None:
        self._bus = bus
        self._subject = subjects.telemetry(service)
        self._name = f"{subjects.prefix}-{service}"
        self._instance = instance
        self._stats = stats
        self._service: Service | None = None

    async def start(self) -> None:
        self._service = await add_service(
            self._bus.client,
            name=self._name,
            version=VERSION,
            description="part of a Braidstream mesh",
            metadata={"instance": self._instance},
            stats_handler=self._on_stats,
        )
        await self._service.add_endpoint(
            name="stats", subject=self._subject, handler=self._on_request
        )

    async def close(self) -> None:
        if self._service is not None and self._bus.connected:
            await self._service.stop()

    def _on_stats(self, _endpoint: EndpointStats) -> dict[str, Any]:
        return {"instance": self._instance, **self._stats()}

    async def _on_request(self, request: Request) -> None:
        await request.respond(msgspec.json.encode({"instance": self._instance, **self._stats()}))


async def discover(bus: Bus, prefix: str, *, wait_s: float = 0.3) -> list[Instance]:
    """Every instance of the mesh that answers a ping within `wait_s`."""
    found: list[Instance] = []
    decoder = msgspec.json.Decoder(Instance)

    def on_message(message: Message) -> None:
        if message.data:
            instance = decoder.decode(message.data)
            if instance.name.startswith(f"{prefix}-"):
                found.append(instance)

    inbox = bus.inbox()
    subscription = await bus.subscribe(inbox, on_message)
    bus.send("$SRV.PING", b"", inbox)
    await asyncio.sleep(wait_s)
    await subscription.close()
    return found
