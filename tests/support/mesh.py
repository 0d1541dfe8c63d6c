"""A whole mesh for end-to-end tests: `braid up`, and an upstream that outlives it.

The upstream is a simulator of our own, so that its journal tells what was really called.
"""

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import psycopg
from psycopg.rows import dict_row

from deploy.mesh.ports import LOOPBACK, free_ports
from deploy.mesh.process import Command, Process, spawn, stop
from shared.bus import Bus, Message
from shared.subjects import Subjects
from tests.e2e.test_braid_up import READY_S, Up
from tests.support.edge import Follower, session_of

PATIENCE_S = 30.0
POLL_S = 0.01
MAX_TRIES = 100
SERVICES = ("edge", "context", "worker", "merger", "persistence")
BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError)
PROVIDERS = """\
[[providers]]
name = "simulator"
base_url = "{url}/v1"
default = true
capabilities = {{ continue_partial = true }}
"""


class Mesh:
    """A running `braid up`. Processes are named as in mesh.json: `edge-1`, `postgres`."""

    def __init__(self, folder: Path, *, copies: int, **settings: object) -> None:
        self.copies = copies
        self.upstream_url = f"http://{LOOPBACK}:{free_ports(1)[0]}"
        self._folder = folder
        self._upstream = self._start_upstream()
        providers = folder / "providers.toml"
        providers.write_text(PROVIDERS.format(url=self.upstream_url), encoding="utf-8")
        variables = {
            "PROVIDERS_FILE": providers,
            "DEFAULT_MODEL": "sim-echo",
            **{f"{service.upper()}S": copies for service in SERVICES},
            **{name.upper(): value for name, value in settings.items()},
        }
        given = {f"BRAID_{name}": str(value) for name, value in variables.items()}
        self.up = Up(folder / "mesh", free_ports(1)[0], **given)
        self.url = self.up.url

    def _start_upstream(self) -> Process:
        port = self.upstream_url.rpartition(":")[2]
        argv = (sys.executable, "-P", "-m", "services.simulator", "--port", port)
        with (self._folder / "upstream.log").open("ab") as output:
            return spawn(Command(argv), output)

    def await_ready(self) -> None:
        self.up.await_ready()

    def close(self) -> int:
        """Stop all; the exit code of `braid up`."""
        for process in self.up.children():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        try:
            return self.up.stop()
        finally:
            self.up.close()
            stop(self._upstream, signal.SIGTERM, deadline_s=5)

    # Processes -----------------------------------------------------------------------------

    def process(self, name: str) -> psutil.Process:
        return psutil.Process(self.up.mesh()["processes"][name]["pid"])

    def kill(self, *names: str) -> float:
        """SIGKILL; returns the monotonic time of it."""
        processes = [self.process(name) for name in names]
        at = time.monotonic()
        for process in processes:
            process.kill()
        return at

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """They and their children hold still: connections stay open and silent."""
        family = [
            member
            for name in names
            for member in (self.process(name), *self.process(name).children(recursive=True))
        ]
        _signal(family, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(family, signal.SIGCONT)

    async def whole(self) -> None:
        """Wait until every process of every service answers. Raises TimeoutError."""
        async with http_of(self) as http:
            await until(lambda: self._is_whole(http), READY_S)

    async def _is_whole(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get("/readyz") as answer:
                counts = (await answer.json())["services"]
        except (*BROKEN, ValueError):
            return False
        return all(counts.get(service, 0) >= self.copies for service in SERVICES)

    def edges_at(self, ports: set[int]) -> set[str]:
        """The edges that hold connections of these client ports."""
        edges = set()
        for number in range(1, self.copies + 1):
            with suppress(KeyError, psutil.NoSuchProcess):  # killed a moment ago
                held = self.process(f"edge-{number}").net_connections("tcp")
                if any(each.raddr and each.raddr.port in ports for each in held):
                    edges.add(f"edge-{number}")
        return edges

    # What is inside ------------------------------------------------------------------------

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[tuple[Bus, Subjects]]:
        facts = self.up.mesh()
        bus = await Bus.connect(facts["nats_url"], "test")
        try:
            yield bus, Subjects(facts["prefix"], facts["event_shards"])
        finally:
            await bus.close()

    async def busy(self, service: str, figure: str) -> str:
        """The name of the one instance whose figure in the statistics is not 0."""
        found: dict[str, int] = {}

        def on_stats(message: Message) -> None:
            for endpoint in msgspec.json.decode(message.data)["endpoints"]:
                found[endpoint["data"]["instance"]] = endpoint["data"][figure]

        async with self.bus() as (bus, subjects):
            inbox = bus.inbox()
            await bus.subscribe(inbox, on_stats)
            bus.send(f"$SRV.STATS.{subjects.prefix}-{service}", b"", inbox)
            await until(lambda: len(found) == self.copies)
        [name] = [name for name, value in found.items() if value]
        return name

    async def forget(self, sid: str, *, keep: int = 0) -> None:
        """The log loses a stream, but for its last records, as it does past retention."""
        async with self.bus() as (bus, subjects):
            stream = subjects.events_stream(subjects.shard(sid))
            js = bus.jetstream()
            await js.purge_stream(stream, subject=subjects.events(sid), keep=keep or None)

    async def calls(self, sid: str) -> list[dict[str, Any]]:
        """The upstream's journal of a stream."""
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{self.upstream_url}/sim/requests", params={"stream": sid}) as answer,
        ):
            calls: list[dict[str, Any]] = (await answer.json())["requests"]
        return calls

    async def call(
        self, sid: str, condition: Callable[[dict[str, Any]], object] = lambda _: True
    ) -> dict[str, Any]:
        """The one upstream call of a stream, once it satisfies the condition."""

        async def found() -> bool:
            calls = await self.calls(sid)
            return len(calls) == 1 and bool(condition(calls[0]))

        await until(found)
        [call] = await self.calls(sid)
        return call

    def rows(self, *sids: str) -> list[dict[str, Any]]:
        """What Postgres has of these streams."""
        with psycopg.connect(self.up.mesh()["postgres_url"], row_factory=dict_row) as connection:
            query = "SELECT * FROM messages WHERE sid = ANY(%s) ORDER BY sid, position"
            return connection.execute(query, [list(sids)]).fetchall()

    async def stored(
        self, *sids: str, count: int = 2, patience_s: float = PATIENCE_S
    ) -> list[dict[str, Any]]:
        """The rows of streams, once there are as many, however often Postgres is away."""
        rows: list[dict[str, Any]] = []

        def are_there() -> bool:
            with suppress(psycopg.OperationalError):
                rows[:] = self.rows(*sids)
            return len(rows) >= count

        await until(are_there, patience_s)
        return rows


class Client:
    """Every request has a connection of its own, so that it may come to any edge."""

    def __init__(self, mesh: Mesh, http: aiohttp.ClientSession) -> None:
        self.mesh = mesh
        self.http = http

    async def post(
        self,
        sid: str | None = None,
        *,
        sse: bool = True,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> aiohttp.ClientResponse:
        """Start a stream. `sim` says how the upstream answers."""
        whole = {"message": "Why is the sky blue?"} | ({"id": sid} if sid else {}) | body
        accept = {"Accept": "text/event-stream"} if sse else {}
        return await self.http.post("/v1/streams", json=whole, headers=accept | (headers or {}))

    async def start(self, sid: str | None = None, **body: Any) -> Follower:
        answer = await self.post(sid, **body)
        assert answer.status == 200, await answer.text()
        return Follower(answer)

    async def follow(self, sid: str, after: int = 0) -> Follower:
        """Resume, as an EventSource does: again and again until an edge answers."""
        headers = {"Last-Event-ID": str(after)} if after else {}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(*BROKEN):
                    answer = await self.http.get(f"/v1/streams/{sid}/events", headers=headers)
                    if answer.status == 200:
                        return Follower(answer)
                    assert answer.status == 503, await answer.text()
                await asyncio.sleep(POLL_S)

    async def whole(self, sid: str, after: int = 0) -> list[bytes]:
        """Every numbered event after a position, as it was sent."""
        return (await (await self.follow(sid, after)).to_the_end()).blocks

    async def finished(self, **body: Any) -> str:
        """A short stream that has its terminal; its id."""
        follower = await self.start(**body)
        heard = await follower.to_the_end()
        assert heard.types[-1] == "done"
        return str(heard.opening["stream_id"])

    def edges_of(self, *followers: Follower) -> set[str]:
        """Which edges have the other ends of connections that are still in use."""
        ports = set()
        for follower in followers:
            connection = follower.answer.connection
            assert connection is not None, "the answer has ended"
            assert connection.transport is not None
            ports.add(connection.transport.get_extra_info("sockname")[1])
        return self.mesh.edges_at(ports)


@asynccontextmanager
async def client_of(mesh: Mesh) -> AsyncIterator[Client]:
    async with http_of(mesh) as http:
        yield Client(mesh, http)


@asynccontextmanager
async def client_at(mesh: Mesh, edge: str) -> AsyncIterator[Client]:
    """A client with one connection, which is to this edge as long as neither closes it."""
    made: list[socket.socket] = []

    def make(info: aiohttp.AddrInfoType) -> socket.socket:
        made.append(socket.socket(*info[:3]))
        return made[-1]

    for _ in range(MAX_TRIES):
        connector = aiohttp.TCPConnector(limit=1, socket_factory=make)
        async with session_of(mesh.url, connector=connector) as http:
            async with http.get("/healthz") as answer:
                await answer.read()
            if mesh.edges_at({made[-1].getsockname()[1]}) == {edge}:
                yield Client(mesh, http)
                return
    raise AssertionError(f"no connection came to {edge}")


def http_of(mesh: Mesh) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return session_of(mesh.url, connector=connector, timeout=aiohttp.ClientTimeout(total=60))


async def until(
    condition: Callable[[], bool | Awaitable[bool]], patience_s: float = PATIENCE_S
) -> float:
    """Wait for a condition; returns when it held, by the monotonic clock. Raises TimeoutError."""
    async with asyncio.timeout(patience_s):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return time.monotonic()
            await asyncio.sleep(POLL_S)


def events_in(blocks: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(block.partition(b"\ndata: ")[2]) for block in blocks]


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
