"""`braid up`: servers, migrations, services, in one supervised tree."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
import structlog

from deploy.mesh import embedded, plan
from deploy.mesh.datadir import DataDir, read_mesh
from deploy.mesh.default_model import first_model
from deploy.mesh.errors import MeshError
from deploy.mesh.logs import Terminal
from deploy.mesh.ports import LOOPBACK, free_ports, is_free
from deploy.mesh.server import Server, tail
from deploy.mesh.supervisor import Child, Spec, Supervisor
from shared.providers import Providers
from shared.settings import Loaded, Settings

log = structlog.get_logger()

SERVER_READY_S: Final = 60.0
LEFTOVER_S: Final = 10.0
MIGRATE_S: Final = 300.0
REPORT_EVERY_S: Final = 5.0
PROBE_EVERY_S: Final = 0.05


def up(loaded: Loaded) -> int:
    """Run the mesh until SIGINT or SIGTERM; returns the exit code.

    Raises MeshError or SettingsError when it cannot start, with everything stopped again.
    """
    providers = Providers.load(loaded.settings)
    settings = _with_port(loaded.settings)
    with DataDir(settings.data_dir) as data:
        return asyncio.run(_Mesh(loaded, settings, data, providers).run())


def _with_port(settings: Settings) -> Settings:
    if settings.port == 0:
        return settings.model_copy(update={"port": free_ports(1)[0]})
    if is_free(settings.port, settings.host):
        return settings
    raise MeshError(
        f"port {settings.port} of {settings.host} is taken or not allowed: "
        "choose another (--port or BRAID_PORT)"
    )


class _Mesh:
    def __init__(
        self, loaded: Loaded, settings: Settings, data: DataDir, providers: Providers
    ) -> None:
        self._loaded = loaded
        # A child writes to a pipe: it cannot see by itself that a terminal is behind it.
        shown = "console" if sys.stdout.isatty() else "json"
        is_auto = settings.log_format == "auto"
        self._settings = settings.model_copy(update={"log_format": shown}) if is_auto else settings
        self._data = data
        self._providers = providers
        self._terminal = Terminal()
        self._supervisor = Supervisor(data.logs_dir, self._terminal, on_change=self._publish)
        self._facts: dict[str, Any] = {}
        self._nats_nodes: Mapping[str, Mapping[str, str]] = {}
        self._stop = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._until_stopped()
        finally:
            is_clean = await self._supervisor.drain()
            self._supervisor.kill_all()
            self._data.withdraw()
            self._terminal.close()
        return 0 if is_clean else 1

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._supervisor.hurry()
        else:
            self._terminal.print("stopping; once more hurries")
            self._stop.set()

    async def _until_stopped(self) -> None:
        """A stop while we are still starting ends the start."""
        starting = asyncio.create_task(self._start(), name="start")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            try:
                await starting
                await stopping
            finally:
                stopping.cancel()
        else:
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting

    async def _start(self) -> None:
        started_at = time.monotonic()
        await _await_leftovers(read_mesh(self._data.path))
        await self._start_servers()
        await self._choose_model()
        specs = plan.service_specs(self._settings, os.environ)
        await self._migrate()
        for spec in specs:
            self._supervisor.start(spec)
        await self._await_ready()
        log.info("mesh.ready", seconds=round(time.monotonic() - started_at, 2))
        self._terminal.print(_welcome(self._settings, self._data))

    async def _choose_model(self) -> None:
        """A provider that was only given by its URL answers requests that name no model, too."""
        if not self._providers or self._loaded.is_given("default_model"):
            return
        model = await first_model(self._providers)
        if model is None:
            log.warning("mesh.no_default_model", advice="set BRAID_DEFAULT_MODEL")
            return
        log.info("mesh.default_model", model=model)
        self._settings = self._settings.model_copy(update={"default_model": model})

    async def _start_servers(self) -> None:
        chosen = embedded.choose(self._loaded, self._data)
        update: dict[str, Any] = dict(chosen.urls) | {"data_dir": self._data.path}
        simulator_port = None
        if not self._providers:
            simulator_port = self._data.ports(["simulator"])["simulator"]
            update["openai_base_url"] = f"http://{LOOPBACK}:{simulator_port}/v1"
        if self._settings.providers_file is not None:
            update["providers_file"] = self._settings.providers_file.absolute()
        self._settings = self._settings.model_copy(update=update)
        self._facts = _facts(self._settings)
        self._nats_nodes = chosen.nats_nodes
        for server in chosen.servers:
            server.command()  # what cannot be run is said before anything is started
        if simulator_port is not None:
            self._facts["simulator_url"] = f"http://{LOOPBACK}:{simulator_port}"
            self._supervisor.start(plan.simulator_spec(self._settings, os.environ, simulator_port))
        try:
            async with asyncio.TaskGroup() as group:
                for server in chosen.servers:
                    group.create_task(self._start_server(server), name=server.name)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _start_server(self, server: Server) -> None:
        await asyncio.to_thread(server.prepare)
        # Started by this thread: the kernel ties a child's life to the thread that started it.
        child = self._supervisor.start(
            Spec(
                server.name,
                server.command(),
                stage=plan.STAGES["server"],
                deadline_s=plan.SERVER_DEADLINE_S,
                is_shown=False,
            )
        )
        ends = time.monotonic() + SERVER_READY_S
        while not await asyncio.to_thread(server.probe):
            if child.exits or time.monotonic() > ends:
                how = f"exited with {child.last_code}" if child.exits else "does not answer"
                raise MeshError(f"{server.name} {how}:\n{tail(child.output.path)}")
            await asyncio.sleep(PROBE_EVERY_S)

    async def _migrate(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *plan.braid("migrate"),
            env=plan.child_environ(self._settings, os.environ, "migrate"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(MIGRATE_S):
                output, _ = await process.communicate()
        except TimeoutError:
            raise MeshError(f"migrations took longer than {MIGRATE_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise MeshError(f"migrations failed:\n{output.decode(errors='replace').strip()}")

    async def _await_ready(self) -> None:
        """The edge is ready once it sees one of each service."""
        waiting_since = reported_at = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while True:
                problem = await _problem(http, self._facts["url"] + "/readyz")
                if problem is None:
                    return
                now = time.monotonic()
                if now - reported_at > REPORT_EVERY_S:
                    reported_at = now
                    log.warning(
                        "mesh.waiting",
                        seconds=round(now - waiting_since),
                        problem=problem,
                        exits={c.spec.name: c.exits for c in self._supervisor.children if c.exits},
                        logs=str(self._data.logs_dir),
                    )
                await asyncio.sleep(PROBE_EVERY_S)

    def _publish(self) -> None:
        running = [child for child in self._supervisor.children if child.pid is not None]
        processes = {child.spec.name: _identify(child) for child in running}
        nodes = [
            {"name": name, **urls, "pid": processes.get(name, {}).get("pid")}
            for name, urls in self._nats_nodes.items()
        ]
        self._data.publish(
            {"pid": os.getpid(), **self._facts, "nats_servers": nodes, "processes": processes}
        )


def _identify(child: Child) -> dict[str, Any]:
    """A pid alone may belong to somebody else by the time it is read."""
    try:
        created = psutil.Process(child.pid).create_time()
    except psutil.NoSuchProcess:
        created = 0.0
    return {"pid": child.pid, "created": created}


async def _await_leftovers(before: dict[str, Any]) -> None:
    """Children of a supervisor that was killed are on their way out; help those that hang."""
    processes = [
        found for each in before.get("processes", {}).values() if (found := _find(each)) is not None
    ]
    if not processes:
        return
    log.warning("mesh.leftovers", pids=[process.pid for process in processes])
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, LEFTOVER_S)
    for process in alive:
        log.warning("mesh.leftover_killed", pid=process.pid)
        with suppress(psutil.NoSuchProcess):
            process.kill()
    await asyncio.to_thread(psutil.wait_procs, alive, LEFTOVER_S)


def _find(each: dict[str, Any]) -> psutil.Process | None:
    try:
        process = psutil.Process(each["pid"])
        is_same = abs(process.create_time() - each["created"]) < 1
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None
    return process if is_same else None


async def _problem(http: aiohttp.ClientSession, url: str) -> str | None:
    """Why the mesh is not ready, as the edge sees it; None when it is."""
    try:
        async with http.get(url) as answer:
            if answer.status == 200:
                return None
            return (await answer.text())[:500]
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"


def _facts(settings: Settings) -> dict[str, Any]:
    return {
        "url": base_url(settings),
        "prefix": settings.prefix,
        "event_shards": settings.event_shards,
        "replicas": settings.replicas,
        "nats_nodes": settings.nats_nodes,
        "nats_url": settings.nats_url,
        "redis_url": settings.redis_url,
        "postgres_url": settings.postgres_url,
    }


def base_url(settings: Settings) -> str:
    """Where a client on this machine finds the edge."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _welcome(settings: Settings, data: DataDir) -> str:
    url = base_url(settings)
    question = '{"message": "What does the merger do?"}'
    return (
        f"braidstream ready at {url}\n"
        f"  ask:   curl -N -X POST {url}/api/v1/chat/message/stream "
        f"-H 'content-type: application/json' -d '{question}'\n"
        f"  URLs of NATS, Redis and PostgreSQL (for psql): {data.mesh_file}\n"
        f"  logs:  {_short(data.logs_dir)}"
    )


def _short(path: Path) -> str:
    """Relative to where the user is, when it is below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
