"""An embedded Redis or Valkey: a cache, so it keeps nothing on disk and evicts when full."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.mesh import binaries
from deploy.mesh.ports import LOOPBACK
from deploy.mesh.process import Command

PROBE_S: Final = 1.0

CONFIG: Final = """\
bind {host}
port {port}
requirepass {password}
dir "{folder}"
save ""
appendonly no
maxmemory {max_bytes}
maxmemory-policy allkeys-lru
"""


@dataclass(frozen=True, slots=True)
class RedisServer:
    folder: Path
    port: int
    password: str
    max_bytes: int = 256 * 1024 * 1024
    name: str = "redis"

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    @property
    def _config(self) -> Path:
        return self.folder / "redis.conf"

    def prepare(self) -> None:
        binaries.redis_server()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._config.touch(mode=0o600)
        escaped = str(self.folder).replace("\\", "\\\\").replace('"', '\\"')
        self._config.write_text(
            CONFIG.format(
                host=LOOPBACK,
                port=self.port,
                password=self.password,
                folder=escaped,
                max_bytes=self.max_bytes,
            ),
            encoding="utf-8",
        )

    def command(self) -> Command:
        return Command((str(binaries.redis_server()), str(self._config)), cwd=self.folder)

    def probe(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), PROBE_S) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (more := connection.recv(256)):
                    answer += more
                return answer.startswith(b"+OK\r\n+PONG")
        except OSError:
            return False
