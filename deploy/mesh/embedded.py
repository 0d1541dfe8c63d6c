"""The servers a mesh starts itself: those whose URL nobody has given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deploy.mesh.datadir import DataDir
from deploy.mesh.errors import MeshError
from deploy.mesh.nats_cluster import joined_url, nats_servers, port_names, refuse_other_size
from deploy.mesh.postgres_server import PostgresServer
from deploy.mesh.redis_server import RedisServer
from deploy.mesh.server import Server
from shared.settings import GIB, Loaded, Settings


@dataclass(frozen=True, slots=True)
class Embedded:
    servers: tuple[Server, ...]
    urls: Mapping[str, str] = field(repr=False)
    """Setting to value: `nats_url` and its like, for the servers above."""
    nats_nodes: Mapping[str, Mapping[str, str]] = field(repr=False)
    """Name to URLs of each NATS node among them, for mesh.json."""


def choose(loaded: Loaded, data: DataDir) -> Embedded:
    """Servers on free ports for every URL that is not given. Raises MeshError."""
    passwords = data.passwords()
    wanted = [name for name in ("nats", "redis", "postgres") if not loaded.is_given(f"{name}_url")]
    settings = loaded.settings
    if "nats" in wanted:
        _refuse_too_many_replicas(settings)
        refuse_other_size(data.path, settings.nats_nodes)
    ports = data.ports([*port_names(settings.nats_nodes), "redis", "postgres"])
    servers: list[Server] = []
    urls: dict[str, str] = {}
    nats_nodes: dict[str, dict[str, str]] = {}
    for name in wanted:
        password = passwords[name]
        if name == "nats":
            limit = store_limit(settings)
            nodes = nats_servers(data.path, settings.nats_nodes, ports, password, limit)
            nats_nodes = {
                node.name: {"url": node.url, "monitor_url": node.monitor_url} for node in nodes
            }
            servers += nodes
            urls["nats_url"] = joined_url(nodes)
            continue
        kind = RedisServer if name == "redis" else PostgresServer
        server: Server = kind(data.path / name, ports[name], password)
        servers.append(server)
        urls[f"{name}_url"] = server.url
    return Embedded(tuple(servers), urls, nats_nodes)


def _refuse_too_many_replicas(settings: Settings) -> None:
    if settings.replicas > settings.nats_nodes:
        raise MeshError(
            f"{settings.replicas} replicas need as many NATS nodes, and {settings.nats_nodes} "
            "would be started: choose --nats-nodes 3, lower BRAID_REPLICAS, or give the URL of a "
            "larger cluster (BRAID_NATS_URL)"
        )


def store_limit(settings: Settings) -> int:
    """Bytes JetStream may take on the disk of one node: what the streams reserve, and room for the
    buckets. With as many replicas as nodes, each node keeps everything."""
    queues = 3 * settings.work_max_bytes
    return settings.events_max_bytes + queues + settings.transcripts_max_bytes + GIB
