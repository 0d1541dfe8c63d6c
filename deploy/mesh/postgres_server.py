"""An embedded PostgreSQL 18 with pgvector, reachable over TCP on loopback with a password."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from deploy.mesh import binaries
from deploy.mesh.errors import MeshError
from deploy.mesh.ports import LOOPBACK
from deploy.mesh.privileges import Identity, unprivileged
from deploy.mesh.process import Command

USER: Final = "braid"
# SIGINT is its fast shutdown; SIGTERM would wait for every client to leave.
STOP_SIGNAL: Final = signal.SIGINT
PROBE_S: Final = 2


@dataclass(frozen=True, slots=True)
class PostgresServer:
    folder: Path
    port: int
    password: str
    database: str = "braid"
    durable: bool = True
    """False: never waits for the disk; for tests only."""
    name: str = "postgres"

    @property
    def url(self) -> str:
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def prepare(self) -> None:
        identity = self._identity()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if identity.owner is not None and self.folder.stat().st_uid != identity.owner[0]:
            os.chown(self.folder, *identity.owner)
        if not (self.folder / "PG_VERSION").exists():
            self._initdb(identity)

    def command(self) -> Command:
        identity = self._identity()
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            # A socket's path is limited to 107 bytes; a data folder's is not.
            "unix_socket_directories": "",
            "max_connections": "200",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        program = str(binaries.postgres_folder() / "bin" / "postgres")
        return Command(
            (*identity.prefix, program, "-D", str(self.folder), *options),
            environ=_environ(),
            cwd=self.folder,
            uid=identity.uid,
            gid=identity.gid,
            stop_signal=STOP_SIGNAL,
        )

    def probe(self) -> bool:
        try:
            with psycopg.connect(
                self.url_of("postgres"), connect_timeout=PROBE_S, autocommit=True
            ) as connection:
                found = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [self.database]
                )
                if found.fetchone() is None:
                    name = sql.Identifier(self.database)
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
            return True
        except psycopg.Error:
            return False

    def _identity(self) -> Identity:
        programs = binaries.postgres_folder()
        libraries = programs.parent.with_name(programs.parent.name + ".libs")
        needed = [
            programs / "bin" / "postgres",
            programs / "share" / "postgresql" / "postgres.bki",
            *([libraries] if libraries.exists() else []),
        ]
        return unprivileged(needed, self.folder, STOP_SIGNAL.name[3:])

    def _initdb(self, identity: Identity) -> None:
        secret = self.folder.with_name(self.folder.name + ".password")
        try:
            secret.touch(mode=0o600)
            secret.write_text(self.password, encoding="utf-8")
            if identity.owner is not None:
                os.chown(secret, *identity.owner)
            done = subprocess.run(
                [
                    *identity.prefix,
                    str(binaries.postgres_folder() / "bin" / "initdb"),
                    *("-D", str(self.folder), "-U", USER, "-A", "scram-sha-256"),
                    *("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=builtin"),
                    f"--pwfile={secret}",
                    *(() if self.durable else ("--no-sync",)),
                ],
                env=_environ(),
                cwd=self.folder,
                user=identity.uid,
                group=identity.gid,
                extra_groups=None if identity.uid is None else [],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        finally:
            secret.unlink(missing_ok=True)
        if done.returncode != 0:
            raise MeshError(f"initdb failed in {self.folder}:\n{done.stdout}")


def _environ() -> dict[str, str]:
    """Ours without what would redirect the server: PGDATA, PGPORT and their like."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PG", "BRAID_"))}
