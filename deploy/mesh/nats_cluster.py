"""The embedded NATS: one server, or three that keep everything three times. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from deploy.mesh.errors import MeshError
from deploy.mesh.nats_server import NatsServer, Routes

ALONE: Final = "nats"


def node_names(nodes: int) -> list[str]:
    return [ALONE] if nodes == 1 else [f"{ALONE}-{number}" for number in range(1, nodes + 1)]


def port_names(nodes: int) -> list[str]:
    """Names of the ports that so many nodes need."""
    names = node_names(nodes)
    ports = [port for name in names for port in (name, _monitor(name))]
    return ports if nodes == 1 else ports + [_route(name) for name in names]


def nats_servers(
    folder: Path, nodes: int, ports: Mapping[str, int], password: str, max_store_bytes: int
) -> list[NatsServer]:
    """The servers, each with a store of its own below `folder`; `max_store_bytes` is for each."""
    names = node_names(nodes)
    return [
        NatsServer(
            folder / name,
            ports[name],
            ports[_monitor(name)],
            password,
            max_store_bytes,
            name=name,
            routes=None
            if nodes == 1
            else Routes(
                ports[_route(name)],
                tuple(ports[_route(other)] for other in names if other != name),
            ),
        )
        for name in names
    ]


def joined_url(servers: Sequence[NatsServer]) -> str:
    """All of them, so that a client finds another when one is gone."""
    return ",".join(server.url for server in servers)


def refuse_other_size(folder: Path, nodes: int) -> None:
    """Raises MeshError when the folder holds the store of another number of nodes.

    The streams of one are unknown to three: what waits there for the database would be forgotten.
    """
    for size in {1, 3} - {nodes}:
        there = [folder / name for name in node_names(size) if (folder / name).exists()]
        if there:
            raise MeshError(
                f"{folder} holds what NATS kept with {size} node{'s' * (size > 1)}, and {nodes} "
                f"cannot take it over: start it with --nats-nodes {size}, choose another folder "
                "(--data-dir or BRAID_DATA_DIR), or remove "
                f"{' '.join(map(str, there))}, which loses what was not yet in the database"
            )


def _monitor(name: str) -> str:
    return f"{name}_monitor"


def _route(name: str) -> str:
    return f"{name}_route"
