"""An embedded nats-server with JetStream: alone, or one node of a cluster on this machine."""

from __future__ import annotations

import json
import socket
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.mesh import binaries
from deploy.mesh.ports import LOOPBACK
from deploy.mesh.process import Command

USER: Final = "braid"
PROBE_S: Final = 1.0

# One job of each line: who may connect, what operators see, how much disk it may take.
CONFIG: Final = """\
server_name: {name}
listen: "{host}:{port}"
http: "{host}:{monitor_port}"
authorization {{ user: {user}, password: {password} }}
max_payload: {max_payload_bytes}
jetstream {{ store_dir: {folder}, max_file_store: {max_store_bytes} }}
"""
# Clients know every node by their own URLs, with the password; an advertised one would lack it.
# Pings find a neighbour that hangs (and still holds its connections) within seconds.
CLUSTER_CONFIG: Final = """\
cluster {{
  name: braid
  listen: "{host}:{route_port}"
  authorization {{ user: {user}, password: {password} }}
  routes: {routes}
  no_advertise: true
  ping_interval: "2s"
  ping_max: 2
}}
"""


@dataclass(frozen=True, slots=True)
class Routes:
    """How a node finds the others, and they it."""

    port: int
    others: tuple[int, ...]
    """Route ports of the other nodes."""


@dataclass(frozen=True, slots=True)
class NatsServer:
    folder: Path
    port: int
    monitor_port: int
    password: str
    max_store_bytes: int
    max_payload_bytes: int = 1024 * 1024
    name: str = "nats"
    routes: Routes | None = None
    """None: a server alone."""

    @property
    def server_name(self) -> str:
        """As it calls itself to operators and to its cluster."""
        return f"braid-{self.name}"

    @property
    def url(self) -> str:
        return f"nats://{USER}:{self.password}@{LOOPBACK}:{self.port}"

    @property
    def monitor_url(self) -> str:
        return f"http://{LOOPBACK}:{self.monitor_port}"

    @property
    def _config(self) -> Path:
        return self.folder / "nats.conf"

    def prepare(self) -> None:
        binaries.nats_server()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._config.touch(mode=0o600)
        self._config.write_text(self._alone() + self._cluster(), encoding="utf-8")

    def _alone(self) -> str:
        return CONFIG.format(
            name=self.server_name,
            host=LOOPBACK,
            port=self.port,
            monitor_port=self.monitor_port,
            user=USER,
            password=json.dumps(self.password),
            max_payload_bytes=self.max_payload_bytes,
            folder=json.dumps(str(self.folder)),
            max_store_bytes=self.max_store_bytes,
        )

    def _cluster(self) -> str:
        if self.routes is None:
            return ""
        to = f"nats-route://{USER}:{self.password}@{LOOPBACK}"
        return CLUSTER_CONFIG.format(
            host=LOOPBACK,
            route_port=self.routes.port,
            user=USER,
            password=json.dumps(self.password),
            routes=json.dumps([f"{to}:{port}" for port in self.routes.others]),
        )

    def command(self) -> Command:
        return Command((str(binaries.nats_server()), "-c", str(self._config)), cwd=self.folder)

    def probe(self) -> bool:
        return self.greets() and (self.routes is None or self._has_leader())

    def _has_leader(self) -> bool:
        """Whether it knows who decides on streams; the leader itself must see every node."""
        meta = meta_cluster(self.monitor_url) or {}
        is_leading = meta.get("leader") == self.server_name
        return bool(meta.get("leader")) and not any(
            is_leading and (replica.get("offline") or not replica.get("current"))
            for replica in meta.get("replicas") or ()
        )

    def greets(self) -> bool:
        """Whether it takes clients; its cluster may have no leader yet."""
        # It greets clients only after JetStream has recovered its streams; the password tells it
        # from a stranger's server on the same port.
        hello = json.dumps({"verbose": False, "user": USER, "pass": self.password})
        try:
            with socket.create_connection((LOOPBACK, self.port), PROBE_S) as connection:
                connection.sendall(f"CONNECT {hello}\r\nPING\r\n".encode())
                answer = b""
                while b"PONG" not in answer and (more := connection.recv(4096)):
                    answer += more
                return b"PONG" in answer
        except OSError:
            return False


def meta_cluster(monitor_url: str) -> dict[str, Any] | None:
    """What a node says of the group that decides on streams; None when it does not answer."""
    try:
        with urllib.request.urlopen(f"{monitor_url}/jsz", timeout=PROBE_S) as answer:  # noqa: S310 - our own server
            facts: dict[str, Any] = json.load(answer)
    except (OSError, ValueError):
        return None
    return facts.get("meta_cluster") or {}
