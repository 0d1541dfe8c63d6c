"""The mesh under test: `braid up` and an upstream that outlives everything."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import psutil

from deploy.mesh.datadir import read_mesh
from deploy.mesh.ports import LOOPBACK, free_ports
from deploy.mesh.process import Command, Process, spawn, stop
from shared.settings import ENV_PREFIX
from tests.chaos.options import SERVICES, Options

HOME = Path(__file__).parents[2]
"""Where `tests` is found."""
ENTRIES_PER_STREAM = 20
READY_S = 120.0
STOP_S = 60.0
POLL_S = 0.05

PROVIDERS = """\
[[providers]]
name = "simulator"
base_url = "{url}/v1"
default = true
capabilities = {{ continue_partial = true }}
"""


class MeshFailed(Exception):
    """The mesh did not come up, or a process of it did not come back."""


class Mesh:
    """Use as an async context: leaving it stops everything, whatever state it is in."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.data_dir = options.folder / "mesh"
        self.upstream_url = ""
        self._processes: list[Process] = []

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    @property
    def facts(self) -> dict[str, Any]:
        """What the mesh says of itself now: a process that was restarted has a new id."""
        return read_mesh(self.data_dir)

    @property
    def url(self) -> str:
        return str(self.facts["url"])

    def names(self, service: str) -> list[str]:
        """The processes of a service."""
        nodes, copies = self._options.nats_nodes, self._options.copies
        if service == "nats":
            return ["nats"] if nodes == 1 else [f"nats-{n}" for n in range(1, nodes + 1)]
        return [f"{service}-{n}" for n in range(1, copies + 1)]

    async def process(self, name: str, *, other_than: int = 0) -> psutil.Process:
        """The process that has this name now, or will soon. Raises MeshFailed."""
        ends = time.monotonic() + READY_S
        while time.monotonic() < ends:
            entry = self.facts.get("processes", {}).get(name)
            if entry is not None and entry["pid"] != other_than:
                try:
                    process = psutil.Process(entry["pid"])
                    if abs(process.create_time() - entry["created"]) < 1:
                        return process
                except psutil.NoSuchProcess:
                    pass
            await asyncio.sleep(POLL_S)
        raise MeshFailed(f"{name} did not come back")

    async def whole(self) -> None:
        """Wait until all processes of all services answer. Raises MeshFailed."""
        ends = time.monotonic() + READY_S
        timeout = aiohttp.ClientTimeout(total=2)
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
            while time.monotonic() < ends:
                if await self._is_whole(http):
                    return
                await asyncio.sleep(POLL_S)
        raise MeshFailed(f"the mesh is not whole; see {self.data_dir / 'logs'}")

    async def _is_whole(self, http: aiohttp.ClientSession) -> bool:
        url = self.facts.get("url")
        if url is None:
            if self._processes[-1].poll() is not None:
                log = self._options.folder / "up.log"
                raise MeshFailed(f"`braid up` ended: {log.read_text()[-2000:]}")
            return False
        try:
            async with http.get(f"{url}/readyz") as answer:
                if answer.status != 200:
                    return False
                counts = (await answer.json())["services"]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
            return False
        return all(counts.get(service, 0) >= self._options.copies for service in SERVICES)

    async def calls(self) -> tuple[list[dict[str, Any]], int]:
        """The upstream's journal, and how many entries it had no room for."""
        url = f"{self.upstream_url}/sim/requests"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            said = json.loads(await answer.read())
        return said["requests"], said["dropped"]

    async def _start(self) -> None:
        options = self._options
        port = free_ports(1)[0]
        self.upstream_url = f"http://{LOOPBACK}:{port}"
        entries = str(options.streams * ENTRIES_PER_STREAM)
        self._spawn("upstream", HOME, "-m", "tests.chaos.upstream", str(port), entries)
        providers = options.folder / "providers.toml"
        providers.write_text(PROVIDERS.format(url=self.upstream_url), encoding="utf-8")
        settings = {
            "DATA_DIR": self.data_dir,
            "PORT": 0,
            "PROVIDERS_FILE": providers,
            "ACK_WAIT_S": options.ack_wait_s,
            "HEARTBEAT_S": 1,
            "LOG_FORMAT": "json",
            **{f"{service.upper()}S": options.copies for service in SERVICES},
        }
        if options.nats_nodes > 1:
            settings["NATS_NODES"] = options.nats_nodes
        given = {ENV_PREFIX + key: str(value) for key, value in settings.items()}
        # Not at home: a braid.toml that lies there is not meant for us.
        self._spawn("up", options.folder, "-P", "-m", "deploy.cli.main", "up", **given)
        await self.whole()

    def _spawn(self, name: str, cwd: Path, *arguments: str, **variables: str) -> None:
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith((ENV_PREFIX, "OPENAI_", "SIM_"))
        }
        command = Command((sys.executable, *arguments), inherited | variables, cwd)
        with (self._options.folder / f"{name}.log").open("ab") as output:
            self._processes.append(spawn(command, output.fileno()))

    async def _stop(self) -> None:
        for entry in self.facts.get("processes", {}).values():
            _send(entry["pid"], signal.SIGCONT)
        for process in reversed(self._processes):
            await asyncio.to_thread(stop, process, signal.SIGTERM, STOP_S)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def logged_events(data_dir: Path, names: frozenset[str]) -> dict[str, int]:
    """How often each of these was logged by any process of the mesh."""
    counts = dict.fromkeys(sorted(names), 0)
    for path in (data_dir / "logs").glob("*.log*"):
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    event = json.loads(line).get("event")
                except (ValueError, AttributeError):
                    continue
                if event in counts:
                    counts[event] += 1
    return counts
