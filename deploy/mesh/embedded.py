"""The servers a mesh starts itself: those whose URL nobody has given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deploy.mesh.datadir import DataDir
from deploy.mesh.nats_server import NatsServer
from deploy.mesh.postgres_server import PostgresServer
from deploy.mesh.redis_server import RedisServer
from deploy.mesh.server import Server
from shared.settings import GIB, Loaded, Settings


@dataclass(frozen=True, slots=True)
class Embedded:
    servers: tuple[Server, ...]
    urls: Mapping[str, str] = field(repr=False)
    """Setting to value: `nats_url` and its like, for the servers above."""
    facts: Mapping[str, str]
    """What mesh.json tells besides."""


def choose(loaded: Loaded, data: DataDir) -> Embedded:
    """Servers on free ports for every URL that is not given. Raises MeshError."""
    passwords = data.passwords()
    wanted = [name for name in ("nats", "redis", "postgres") if not loaded.is_given(f"{name}_url")]
    ports = data.ports(["nats", "nats_monitor", "redis", "postgres"])
    servers: list[Server] = []
    urls: dict[str, str] = {}
    facts: dict[str, str] = {}
    for name in wanted:
        folder, port, password = data.path / name, ports[name], passwords[name]
        server: Server
        if name == "nats":
            limit = store_limit(loaded.settings)
            server = NatsServer(folder, port, ports["nats_monitor"], password, limit)
            facts["nats_monitor_url"] = server.monitor_url
        elif name == "redis":
            server = RedisServer(folder, port, password)
        else:
            server = PostgresServer(folder, port, password)
        servers.append(server)
        urls[f"{name}_url"] = server.url
    return Embedded(tuple(servers), urls, facts)


def store_limit(settings: Settings) -> int:
    """Bytes JetStream may take on disk: what the streams reserve, and room for the buckets."""
    queues = 3 * settings.work_max_bytes
    return settings.events_max_bytes + queues + settings.transcripts_max_bytes + GIB
