"""The embedded servers are real, open only to those who know the password, and keep their data."""

import asyncio
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import nats
import psutil
import psycopg
import pytest
import redis.asyncio
from nats.js.api import StreamConfig

from deploy.mesh import binaries
from deploy.mesh.errors import MeshError
from deploy.mesh.nats_server import NatsServer
from deploy.mesh.ports import free_ports
from deploy.mesh.postgres_server import PostgresServer
from deploy.mesh.redis_server import RedisServer
from deploy.mesh.server import Running
from shared.settings import Settings
from tests.support.servers import delete_streams, talk


async def test_nats_offers_jetstream_and_shows_its_streams_to_operators(
    nats_server: NatsServer,
) -> None:
    connection = await nats.connect(nats_server.url)
    await connection.jetstream().add_stream(StreamConfig(name="SHOWN_ONE", subjects=["shown.>"]))
    await connection.close()
    shown = await asyncio.to_thread(_monitoring, nats_server)
    streams = [each["name"] for each in shown["account_details"][0]["stream_detail"]]
    assert "SHOWN_ONE" in streams
    delete_streams(nats_server.url, "shown")


def _monitoring(server: NatsServer) -> Any:
    with urllib.request.urlopen(f"{server.monitor_url}/jsz?streams=1") as answer:
        return json.load(answer)


async def test_streams_of_one_test_are_gone_for_the_next_and_those_of_others_are_not(
    nats_url: str,
) -> None:
    connection = await nats.connect(nats_url)
    jetstream = connection.jetstream()
    await jetstream.add_stream(StreamConfig(name="MINE_EVENTS", subjects=["mine.>"]))
    await jetstream.add_stream(StreamConfig(name="MINE2_EVENTS", subjects=["mine2.>"]))
    await jetstream.create_key_value(bucket="mine_cancel")
    delete_streams(nats_url, "mine")
    assert [each.config.name for each in await jetstream.streams_info()] == ["MINE2_EVENTS"]
    delete_streams(nats_url, "mine2")
    await connection.close()


async def test_a_neighbour_on_the_same_machine_needs_the_password(
    nats_server: NatsServer, redis_server: RedisServer, postgres_server: PostgresServer
) -> None:
    greeting = talk(nats_server.port, "CONNECT {}\r\nPING\r\n", lambda got: b"-ERR" in got)
    assert b"Authorization Violation" in greeting
    stranger = redis.asyncio.from_url(f"redis://127.0.0.1:{redis_server.port}")
    with pytest.raises(redis.exceptions.AuthenticationError):
        await stranger.ping()
    await stranger.aclose()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://braid:guess@127.0.0.1:{postgres_server.port}/braid")


async def test_redis_evicts_when_full_because_it_is_only_a_cache(redis_url: str) -> None:
    client = redis.asyncio.from_url(redis_url)
    assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "allkeys-lru"
    assert (await client.config_get("maxmemory"))["maxmemory"] != "0"
    await client.aclose()


def test_postgres_is_18_with_vectors_and_knows_letters_beyond_ascii(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE EXTENSION vector")
        row = connection.execute(
            "SELECT '[1,2]'::vector <-> '[1,4]', upper('ä'), current_setting('server_version_num')"
        ).fetchone()
    assert row is not None
    assert row[:2] == (2.0, "Ä")
    assert int(row[2]) >= 180_000


def test_each_test_gets_a_database_and_settings_of_its_own(settings: Settings) -> None:
    with psycopg.connect(settings.postgres_url) as connection:
        found = connection.execute("SELECT count(*) FROM pg_stat_user_tables").fetchone()
    assert found == (0,)
    assert settings.prefix != "braid"


def test_postgres_works_in_a_very_long_closed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in root's home: a unix socket there could not be opened for the length of its path, and
    the user it runs as can by itself pass neither to the programs nor to the data."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "programs").symlink_to(binaries.postgres_folder())
    monkeypatch.setattr(binaries, "postgres_folder", lambda: closed / "programs")
    folder = closed.joinpath(*["a-rather-long-folder-name"] * 6) / "postgres"
    server = PostgresServer(folder, free_ports(1)[0], "pw", durable=False)
    with Running(server, tmp_path / "log"), psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept (x int)")
    with Running(server, tmp_path / "log"), psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    assert closed.stat().st_mode & 0o777 == 0o700


def test_a_server_that_cannot_start_says_why(tmp_path: Path, nats_server: NatsServer) -> None:
    port = free_ports(1)[0]
    second = NatsServer(tmp_path / "nats", nats_server.port, port, "pw", 1024**3)
    with pytest.raises(MeshError, match="address already in use"), Running(second, tmp_path / "l"):
        pytest.fail("two servers on one port")


PARENT = """
import sys, time
from pathlib import Path
from deploy.mesh import nats_server, postgres_server, redis_server
from deploy.mesh.ports import free_ports
from deploy.mesh.server import Running
folder, (one, two) = Path(sys.argv[2]), free_ports(2)
server = {
    "nats": lambda: nats_server.NatsServer(folder / "s", one, two, "pw", 1024**3),
    "redis": lambda: redis_server.RedisServer(folder / "s", one, "pw"),
    "postgres": lambda: postgres_server.PostgresServer(folder / "s", one, "pw", durable=False),
}[sys.argv[1]]()
with Running(server, folder / "log"):
    print("runs", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
@pytest.mark.parametrize("kind", ["nats", "redis", "postgres"])
def test_a_killed_parent_takes_its_servers_along(kind: str, tmp_path: Path) -> None:
    """Else the next start would find its ports and its data folder in use."""
    with psutil.Popen(
        [sys.executable, "-c", PARENT, kind, str(tmp_path)], stdout=-1, text=True
    ) as parent:
        assert parent.stdout.readline() == "runs\n"
        children = parent.children()
        parent.kill()
    assert len(children) == 1
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
