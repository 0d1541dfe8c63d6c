"""An embedded nats-server with JetStream."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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


@dataclass(frozen=True, slots=True)
class NatsServer:
    folder: Path
    port: int
    monitor_port: int
    password: str
    max_store_bytes: int
    max_payload_bytes: int = 1024 * 1024
    name: str = "nats"

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
        self._config.write_text(
            CONFIG.format(
                name=f"braid-{self.name}",
                host=LOOPBACK,
                port=self.port,
                monitor_port=self.monitor_port,
                user=USER,
                password=json.dumps(self.password),
                max_payload_bytes=self.max_payload_bytes,
                folder=json.dumps(str(self.folder)),
                max_store_bytes=self.max_store_bytes,
            ),
            encoding="utf-8",
        )

    def command(self) -> Command:
        return Command((str(binaries.nats_server()), "-c", str(self._config)), cwd=self.folder)

    def probe(self) -> bool:
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
