"""Real NATS, Redis and PostgreSQL for tests: one of each a session, isolated a test.

They are the servers `braid up` embeds, in a temporary folder, on free ports.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from deploy.mesh.nats_server import NatsServer
from deploy.mesh.ports import free_ports
from deploy.mesh.postgres_server import PostgresServer
from deploy.mesh.redis_server import RedisServer
from deploy.mesh.server import Running
from shared.settings import ENV_PREFIX, MIB, Settings
from tests.support.cluster import NatsCluster, nats_cluster_in

PASSWORD = "test-only"
_numbers = count(1)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_the_environment() -> Iterator[None]:
    """What a developer has set must not change what a test means."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith((ENV_PREFIX, "OPENAI_")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def servers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder other users may pass: as root, PostgreSQL runs as somebody else."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def nats_server(servers_dir: Path) -> Iterator[NatsServer]:
    port, monitor_port = free_ports(2)
    # Streams reserve their max_bytes: leave room for those of every test.
    server = NatsServer(servers_dir / "nats", port, monitor_port, PASSWORD, 1024 * 1024 * MIB)
    with Running(server, servers_dir / "nats.log"):
        yield server


@pytest.fixture(scope="session")
def nats_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three nodes for the session. A test that stops one starts it again."""
    with nats_cluster_in(tmp_path_factory.mktemp("cluster"), PASSWORD) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def redis_server(servers_dir: Path) -> Iterator[RedisServer]:
    server = RedisServer(servers_dir / "redis", free_ports(1)[0], PASSWORD)
    with Running(server, servers_dir / "redis.log"):
        yield server


@pytest.fixture(scope="session")
def postgres_server(servers_dir: Path) -> Iterator[PostgresServer]:
    port = free_ports(1)[0]
    server = PostgresServer(servers_dir / "postgres", port, PASSWORD, durable=False)
    with Running(server, servers_dir / "postgres.log"):
        yield server


@pytest.fixture(scope="session")
def nats_url(nats_server: NatsServer) -> str:
    """One server for the session; a test keeps to the prefix of its `settings`."""
    return nats_server.url


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    """One server for the session; `settings` and `empty_redis_url` empty it first."""
    return redis_server.url


@pytest.fixture
def empty_redis_url(redis_server: RedisServer) -> str:
    talk(redis_server.port, f"AUTH {PASSWORD}\r\nFLUSHALL\r\n", lambda got: got.count(b"\n") >= 2)
    return redis_server.url


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A new, empty database, dropped afterwards. Its owner may create extensions."""
    name = f"test_{next(_numbers)}"
    quoted = sql.Identifier(name)
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(quoted))
    yield postgres_server.url_of(name)
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))


@pytest.fixture
def bus_settings(nats_server: NatsServer) -> Iterator[Settings]:
    """Settings with a real NATS and a prefix of the test's own, and small queues."""
    prefix = f"t{next(_numbers)}"
    yield Settings(
        prefix=prefix,
        nats_url=nats_server.url,
        port=0,
        events_max_bytes=64 * MIB,
        work_max_bytes=8 * MIB,
        transcripts_max_bytes=16 * MIB,
    )
    delete_streams(nats_server.url, prefix)


@pytest.fixture
def cluster_settings(nats_cluster: NatsCluster) -> Iterator[Settings]:
    """Settings with a real cluster that keeps everything three times."""
    prefix = f"t{next(_numbers)}"
    yield Settings(
        prefix=prefix,
        nats_url=nats_cluster.url,
        nats_nodes=3,
        event_shards=2,
        port=0,
        events_max_bytes=64 * MIB,
        work_max_bytes=8 * MIB,
        transcripts_max_bytes=16 * MIB,
    )
    delete_streams(nats_cluster.servers["nats-1"].url, prefix)


@pytest.fixture
def settings(
    bus_settings: Settings, empty_redis_url: str, postgres_url: str, tmp_path: Path
) -> Settings:
    """The same, with an emptied Redis, a new database and a data folder."""
    return bus_settings.model_copy(
        update={
            "redis_url": empty_redis_url,
            "postgres_url": postgres_url,
            "data_dir": tmp_path / "data",
        }
    )


def delete_streams(nats_url: str, prefix: str) -> None:
    """Delete every JetStream stream and bucket of a mesh. Speaks the protocol itself, so that it
    needs no event loop and works whatever state the code under test is in."""
    parts = urlsplit(nats_url)
    hello = f'CONNECT {{"verbose":false,"user":"{parts.username}","pass":"{parts.password}"}}\r\n'
    subscribe = "SUB reply 1\r\n"

    def request(subject: str) -> dict[str, list[str]]:
        text = f"{hello}{subscribe}PUB {subject} reply 0\r\n\r\n"
        got = talk(parts.port or 4222, text, lambda got: b"MSG " in got and got.endswith(b"}\r\n"))
        answer: dict[str, list[str]] = json.loads(got.partition(b"MSG ")[2].partition(b"\r\n")[2])
        return answer

    ours = (f"{prefix}_".lower(), f"kv_{prefix}_".lower())
    for name in request("$JS.API.STREAM.NAMES").get("streams") or []:
        if name.lower().startswith(ours):
            request(f"$JS.API.STREAM.DELETE.{name}")


def talk(port: int, text: str, is_complete: Callable[[bytes], bool]) -> bytes:
    """Send it and read until the answer is complete or the server closes."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(text.encode())
        while not is_complete(got) and (more := connection.recv(65_536)):
            got += more
    return got
