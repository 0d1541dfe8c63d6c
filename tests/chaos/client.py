"""The clients of one stream: they ask, read, lose their connection, come back, and note it all."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import aiohttp

from tests.chaos.journals import TERMINALS, Asked, AskedBranch, Connection, End, Reading, Seen
from tests.chaos.streams import DEADLINE_S, StreamPlan

SILENCE_S = 3.0
"""The mesh sends a keep-alive every second: a connection that is silent for longer is given up."""
CONNECT_S = 2.0
LINGER_S = 1.0
"""After the terminal, so that nothing which follows it goes unnoticed."""
GIVE_UP_S = 20.0
"""After the deadline; a stream without a terminal by then has none."""
BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError)
AGAIN = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Http:
    """How all clients of a campaign reach the mesh."""

    session: aiohttp.ClientSession
    url: str


def open_session() -> aiohttp.ClientSession:
    """Every request gets a connection of its own, so that it may reach any of the edges."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
    )


class Follower:
    """Reads a stream to its terminal, over as many connections as it takes."""

    def __init__(
        self, http: Http, plan: StreamPlan, asked: Asked, reading: Reading, random: Random
    ) -> None:
        self._http = http
        self._plan = plan
        self._asked = asked
        self._reading = reading
        self._random = random
        self._moved = asyncio.Event()
        self.over = False
        """The terminal was read, or there is no use in going on."""

    @property
    def position(self) -> int:
        events = self._reading.events
        return events[-1].n if events else self._reading.after

    async def reached(self, n: int) -> None:
        """Wait until event `n` was read, or the stream is over."""
        while self.position < n and not self.over:
            self._moved.clear()
            await self._moved.wait()

    async def accepted(self) -> None:
        while self._asked.accepted_at is None and not self.over:
            self._moved.clear()
            await self._moved.wait()

    async def run(self) -> None:
        give_up_at = time.monotonic() + DEADLINE_S + GIVE_UP_S
        while not self.over and time.monotonic() < give_up_at:
            await self._connect()
            if not self.over:
                await asyncio.sleep(self._random.uniform(0.02, 0.3))
        self.over = True
        self._moved.set()

    async def _connect(self) -> None:
        asks = self._asked.accepted_at is None or self._random.random() < 0.2
        connections = self._reading.connections
        connection = Connection(len(connections), "POST" if asks else "GET", time.monotonic())
        connections.append(connection)
        try:
            connection.end = await self._read(connection)
        except BROKEN:
            connection.end = "terminal" if self.over else "broken"
        connection.ended_at = time.monotonic()

    async def _read(self, connection: Connection) -> End:
        http, sid = self._http, self._plan.sid
        headers = {"Accept": "text/event-stream"}
        if self.position:
            headers["Last-Event-ID"] = str(self.position)
        if connection.method == "POST":
            request = http.session.post(
                f"{http.url}/v1/streams", json=self._plan.body, headers=headers
            )
        else:
            request = http.session.get(f"{http.url}/v1/streams/{sid}/events", headers=headers)
        async with request as response:
            connection.status = response.status
            if response.status != 200:
                return await self._refused(response)
            if self._asked.accepted_at is None:
                self._asked.accepted_at = time.monotonic()
                self._moved.set()
            rest = b""
            async for read in response.content.iter_any():
                *blocks, rest = (rest + read).split(b"\n\n")
                self._take(blocks, connection)
                if self.over:
                    await self._linger(response, rest, connection)
                    return "terminal"
        return "ended"

    async def _refused(self, response: aiohttp.ClientResponse) -> End:
        if response.status not in AGAIN:
            said = (await response.text())[:200]
            self._reading.strange.append(
                f"{response.method} after {self.position}: {response.status} {said}"
            )
            self.over = True
        else:
            after_s = float(response.headers.get("Retry-After", "1"))
            await asyncio.sleep(min(after_s, 2.0) * self._random.uniform(0.5, 1.0))
        return "refused"

    def _take(self, blocks: Sequence[bytes], connection: Connection) -> None:
        now = time.monotonic()
        for block in blocks:
            if block.startswith(b"id: "):
                n = int(block[4 : block.index(b"\n")])
                raw = block.decode() + "\n\n"
                self._reading.events.append(Seen(n, raw, connection.number, now))
                if any(f'"type":"{kind}"' in raw for kind in TERMINALS):
                    self.over = True
            elif b'"type":"open"' in block:
                connection.opened_at = now
        self._moved.set()

    async def _linger(
        self, response: aiohttp.ClientResponse, rest: bytes, connection: Connection
    ) -> None:
        async with asyncio.timeout(LINGER_S):
            async for read in response.content.iter_any():
                *blocks, rest = (rest + read).split(b"\n\n")
                self._take(blocks, connection)


async def run_stream(
    http: Http, plan: StreamPlan, asked: list[Asked], readings: list[Reading]
) -> None:
    """All clients of one stream, until each has had its terminal or has given up."""
    random = Random(plan.seed)
    about = Asked(
        sid=plan.sid,
        session_id=plan.sid,
        question=plan.question,
        branches=[AskedBranch(branch.label, branch.tokens) for branch in plan.branches],
        mid_stream=plan.mid_stream,
        deadline_s=DEADLINE_S,
        asked_at=time.monotonic(),
    )
    asked.append(about)
    reading = Reading(plan.sid, "first")
    readings.append(reading)
    first = Follower(http, plan, about, reading, random)
    async with asyncio.TaskGroup() as group:
        group.create_task(first.run())
        if plan.cancel_after_s is not None:
            group.create_task(_cancel(http, plan.cancel_after_s, about, first, reading, random))
        if plan.second is not None:
            group.create_task(_second(http, plan, about, first, readings))


async def _second(
    http: Http, plan: StreamPlan, about: Asked, first: Follower, readings: list[Reading]
) -> None:
    await first.accepted()
    after = 0
    if plan.second == "middle":
        await first.reached(plan.middle)
        after = min(plan.middle, first.position)
    elif plan.second in ("late", "late middle"):
        await first.reached(10**9)
        after = min(plan.middle, first.position - 1) if plan.second == "late middle" else 0
    if about.accepted_at is None or (first.over and after >= first.position):
        return  # there is nothing to read after that
    reading = Reading(plan.sid, plan.second or "", max(after, 0))
    readings.append(reading)
    await Follower(http, plan, about, reading, Random(plan.seed + 1)).run()


async def _cancel(
    http: Http, after_s: float, about: Asked, first: Follower, reading: Reading, random: Random
) -> None:
    """Ask until it is answered; the two forms of asking mean the same."""
    await first.accepted()
    try:
        async with asyncio.timeout(after_s):
            await first.reached(10**9)
        return
    except TimeoutError:
        about.cancel_tried_at = time.monotonic()
    url = f"{http.url}/v1/streams/{about.sid}"
    while not first.over:
        try:
            posts = random.random() < 0.5
            request = http.session.post(f"{url}/cancel") if posts else http.session.delete(url)
            async with request as response:
                if response.status == 202:
                    about.cancelled_at = time.monotonic()
                if response.status in (200, 202):
                    return
                if response.status not in AGAIN:
                    said = (await response.text())[:200]
                    reading.strange.append(f"cancel: {response.status} {said}")
                    return
        except BROKEN:
            pass  # asked again, of whichever edge answers
        await asyncio.sleep(random.uniform(0.05, 0.3))
