"""What `braid doctor` looks at. Each check reports findings and never raises."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import psycopg
import redis.asyncio
from redis.exceptions import RedisError

from deploy.mesh.cluster_checks import nodes_of, streams_of
from deploy.mesh.embedded import store_limit
from deploy.mesh.finding import Finding
from deploy.mesh.plan import COUNT_KEYS
from services.persistence import migrate
from shared.bus import Bus, BusError, discover, replicas_of
from shared.providers import Provider, Providers
from shared.settings import Settings, SettingsError, mask_url
from shared.subjects import Subjects

TIMEOUT_S: Final = 5.0
START: Final = "start the mesh (`braid up`), or give its URL ({variable})"


@dataclass(frozen=True, slots=True)
class Patient:
    """The mesh to look at."""

    settings: Settings
    edge_url: str
    simulator_url: str | None
    monitors: Mapping[str, str] = field(default_factory=dict)
    """Name to monitoring URL of each NATS node that `braid up` runs."""


async def examine(patient: Patient) -> list[Finding]:
    """All checks, at the same time, in the order of a reader's interest."""
    checks: list[Awaitable[list[Finding]]] = [
        _nats_and_services(patient.settings),
        _nats_nodes(patient),
        _redis(patient.settings),
        _postgres(patient.settings),
        _edge(patient),
        _providers(patient),
        asyncio.to_thread(_disk, patient.settings),
    ]
    return [finding for findings in await asyncio.gather(*checks) for finding in findings]


async def _nats_and_services(settings: Settings) -> list[Finding]:
    shown = mask_url(settings.nats_url)
    try:
        bus = await Bus.connect(settings.nats_url, "doctor", timeout_s=TIMEOUT_S)
    except BusError:
        advice = START.format(variable="BRAID_NATS_URL")
        return [Finding("nats", False, f"{shown} does not answer", advice)]
    findings = [Finding("nats", True, shown)]
    try:
        subjects = Subjects(settings.prefix, settings.event_shards)
        try:
            states, missing = await replicas_of(bus, subjects)
        except BusError as error:
            advice = "start nats-server with JetStream (-js), and look whether its disk is full"
            return [*findings, Finding("jetstream", False, str(error), advice)]
        findings.append(_streams(missing))
        findings += streams_of(states, settings.replicas)
        found = Counter(
            instance.name.removeprefix(f"{settings.prefix}-")
            for instance in await discover(bus, settings.prefix)
        )
        findings += [_service(name, found[name]) for name in COUNT_KEYS]
    finally:
        await bus.close()
    return findings


async def _nats_nodes(patient: Patient) -> list[Finding]:
    if len(patient.monitors) < 2:
        return []
    return await asyncio.to_thread(nodes_of, patient.monitors)


def _streams(missing: list[str]) -> Finding:
    if not missing:
        return Finding("jetstream", True, "has every stream")
    advice = "start any service: each declares them; its log says when JetStream refuses"
    return Finding("jetstream", False, f"lacks {', '.join(missing)}", advice)


def _service(name: str, count: int) -> Finding:
    if count:
        return Finding(name, True, f"{count} running")
    return Finding(name, False, "none answers", f"start one: braid run {name}; or read its log")


async def _redis(settings: Settings) -> list[Finding]:
    shown = mask_url(settings.redis_url)
    client = redis.asyncio.from_url(
        settings.redis_url, socket_connect_timeout=TIMEOUT_S, socket_timeout=TIMEOUT_S
    )
    try:
        await client.ping()
        return [Finding("redis", True, shown)]
    except (RedisError, OSError) as error:
        advice = START.format(variable="BRAID_REDIS_URL")
        return [Finding("redis", False, f"{shown}: {_brief(error)}", advice)]
    finally:
        await client.aclose()


async def _postgres(settings: Settings) -> list[Finding]:
    url = settings.postgres_url
    try:
        async with asyncio.timeout(TIMEOUT_S):
            async with await psycopg.AsyncConnection.connect(url) as connection:
                await connection.execute("SELECT 1")
    except (psycopg.Error, TimeoutError) as error:
        advice = START.format(variable="BRAID_POSTGRES_URL")
        return [Finding("postgres", False, f"{mask_url(url)}: {_brief(error)}", advice)]
    findings = [Finding("postgres", True, mask_url(url))]
    return [*findings, await asyncio.to_thread(_migrations, url)]


def _migrations(url: str) -> Finding:
    try:
        there, wanted = migrate.current(url), migrate.head()
    except migrate.MigrationError as error:
        return Finding("migrations", False, _brief(error), "look at the database's log")
    if there == wanted:
        return Finding("migrations", True, f"at {there}")
    detail = f"at {there or 'none'}, this version needs {wanted}"
    return Finding("migrations", False, detail, "run `braid migrate`")


async def _edge(patient: Patient) -> list[Finding]:
    url = f"{patient.edge_url}/healthz"
    problem = await _get(url, {})
    if problem is None:
        return [Finding("http", True, patient.edge_url)]
    advice = "start the edge, or say where it is (--port, --host)"
    return [Finding("http", False, f"{url}: {problem}", advice)]


async def _providers(patient: Patient) -> list[Finding]:
    try:
        providers = Providers.load(patient.settings).all
    except SettingsError as error:
        return [Finding("provider", False, str(error), "mend the providers file")]
    if not providers and patient.simulator_url:
        providers = (Provider(name="simulator", base_url=f"{patient.simulator_url}/v1"),)
    if not providers:
        advice = "set OPENAI_BASE_URL or OPENAI_API_KEY; `braid up` brings a simulator meanwhile"
        return [Finding("provider", False, "none is configured", advice)]
    return list(await asyncio.gather(*map(_provider, providers)))


async def _provider(provider: Provider) -> Finding:
    headers = {name: value.get_secret_value() for name, value in provider.headers.items()}
    if provider.api_key is not None:
        headers["authorization"] = f"Bearer {provider.api_key.get_secret_value()}"
    what = f"provider {provider.name}"
    problem = await _get(provider.base_url.rstrip("/") + "/models", headers)
    if problem is None:
        return Finding(what, True, mask_url(provider.base_url))
    is_refused = problem in {"status 401", "status 403"}
    advice = "check its key" if is_refused else "check its base_url (with its /v1) and the network"
    return Finding(what, False, f"{mask_url(provider.base_url)}: {problem}", advice)


async def _get(url: str, headers: Mapping[str, str]) -> str | None:
    """What is wrong with a GET of it; None when the answer is 200."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(url, headers=headers) as answer,
        ):
            return None if answer.status == 200 else f"status {answer.status}"
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return _brief(error)


def _disk(settings: Settings) -> list[Finding]:
    """JetStream turns itself off on a full disk, so its limits must be reached before."""
    folder = settings.data_dir
    if not folder.exists():
        return []
    free = shutil.disk_usage(folder).free
    wanted = store_limit(settings) * settings.nats_nodes
    detail = f"{free >> 20} MiB free, JetStream may take {wanted >> 20} MiB"
    if free > wanted:
        return [Finding("disk", True, detail)]
    advice = "free some, move BRAID_DATA_DIR, or lower BRAID_EVENTS_MAX_BYTES and its like"
    return [Finding("disk", False, detail, advice)]


def _brief(error: BaseException) -> str:
    """One line that names the kind of failure and holds no password."""
    text: Any = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
