"""The edge: HTTP and SSE in front of the mesh. The composition root of this service."""

from typing import Any

from aiohttp import web

from services.edge.absence import Absence
from services.edge.app import create_app
from services.edge.archive import Archive
from services.edge.cancelling import cancel
from services.edge.health import Readiness
from services.edge.past import Past
from services.edge.pulse import Pulse
from services.edge.streams import StreamHandlers
from shared.actor import Service
from shared.bus import CancelMarks, Link, discover
from shared.ids import new_instance_id
from shared.settings import Settings
from shared.telemetry import Counters

BEAT_EVERY_S = 0.25
BACKLOG = 1024


def build(settings: Settings) -> "EdgeService":
    return EdgeService(settings)


class EdgeService(Service):
    name = "edge"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.instance = settings.service_id or new_instance_id(self.name)
        self.drain_deadline_s = settings.drain_deadline_s
        self.port = settings.port
        """The TCP port in use; after `start`, never 0."""
        self.counters = Counters()
        self.link: Link | None = None
        self._settings = settings
        self._pulse: Pulse | None = None
        self.absence: Absence | None = None
        self.readiness: Readiness | None = None
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None

    async def start(self) -> None:
        settings = self._settings
        link = self.link = await Link.open(settings, self.name, self.instance, self._stats)
        pulse = self._pulse = Pulse(
            link.log,
            self.counters,
            tail_check_s=settings.tail_check_s,
            write_deadline_s=settings.write_deadline_s,
        )
        readiness = self.readiness = Readiness(
            settings.prefix,
            lambda: link.bus.connected,
            lambda: discover(link.bus, settings.prefix),
        )
        marks = CancelMarks(link.bus, link.subjects)
        absence = self.absence = Absence(
            link.bus,
            link.subjects,
            lambda sid: cancel(link, marks, sid, "disconnected"),
            self.counters,
            grace_s=settings.cancel_grace_s,
        )
        await absence.start()
        past = Past(
            link,
            Archive(link.bus, link.subjects),
            self.counters,
            write_deadline_s=settings.write_deadline_s,
        )
        streams = StreamHandlers(
            settings,
            link,
            marks=marks,
            past=past,
            pulse=pulse,
            absence=absence,
            counters=self.counters,
        )
        app = create_app(streams, readiness, max_body_bytes=settings.max_body_bytes)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=settings.drain_deadline_s / 2
        )
        await self._runner.setup()
        self._site = web.TCPSite(
            self._runner, settings.host, settings.port, backlog=BACKLOG, reuse_port=True
        )
        await self._site.start()
        self.port = self._runner.addresses[0][1]
        every_s = min(BEAT_EVERY_S, settings.heartbeat_s / 2, settings.tail_check_s / 2)
        link.bus.on_reconnect(pulse.on_reconnect)
        self.tasks.spawn("edge.beats", pulse.run_beats(every_s))
        self.tasks.spawn("edge.tail_checks", pulse.run_checks(every_s))
        await link.announce()

    async def drain(self) -> None:
        """Readers' answers end without a terminal; their clients resume on another edge."""
        if self.readiness is not None:
            self.readiness.draining = True
        if self.link is not None:
            await self.link.withdraw()
        if self._site is not None:
            await self._site.stop()
        if self.absence is not None:
            await self.absence.close()
        if self._pulse is not None:
            self._pulse.close()
        if self._runner is not None:
            await self._runner.cleanup()
        await self.tasks.cancel()
        if self.link is not None:
            await self.link.close()

    def _stats(self) -> dict[str, Any]:
        readers = len(self._pulse) if self._pulse is not None else 0
        return {"port": self.port, "readers": readers, **self.counters}
