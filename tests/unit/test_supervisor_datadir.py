"""One data folder is one mesh: its lock, what it remembers, what it tells."""

import json
import os
import socket
from pathlib import Path

import pytest

from deploy.mesh import embedded, plan
from deploy.mesh.datadir import DataDir, read_mesh
from deploy.mesh.errors import MeshError
from deploy.mesh.nats_server import NatsServer
from deploy.mesh.ports import free_ports, is_free
from deploy.mesh.privileges import open_to_others, way_is_open
from shared.settings import Settings, load, load_settings


def test_a_second_mesh_on_a_folder_is_refused_by_the_pid_of_the_first(tmp_path: Path) -> None:
    with DataDir(tmp_path), pytest.raises(MeshError, match=f"process {os.getpid()}"):
        DataDir(tmp_path).__enter__()
    with DataDir(tmp_path):
        pass  # the lock went with the first


def test_a_folder_that_cannot_be_made_says_which_option_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MeshError, match="--data-dir"):
        DataDir(tmp_path / "file" / "below").__enter__()


def test_ports_and_passwords_are_the_same_at_the_next_start(tmp_path: Path) -> None:
    names = ["nats", "redis"]
    with DataDir(tmp_path) as data:
        ports, passwords = data.ports(names), data.passwords()
    with DataDir(tmp_path) as data:
        assert data.ports(names) == ports
        assert data.passwords() == passwords
    assert len(set(passwords.values())) == 3


def test_a_port_somebody_has_taken_meanwhile_is_chosen_anew(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data:
        taken = data.ports(["nats"])["nats"]
        with socket.socket() as other:
            other.bind(("127.0.0.1", taken))
            other.listen()
            assert data.ports(["nats"])["nats"] != taken


def test_files_with_passwords_are_for_their_owner_only(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data:
        data.passwords()
        data.publish({"postgres_url": "..."})
    for name in ("state.json", "mesh.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_database_whose_password_is_lost_is_not_started_over_silently(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("18")
    with DataDir(tmp_path) as data, pytest.raises(MeshError, match="remove that folder"):
        data.passwords()


def test_what_a_mesh_tells_is_gone_once_it_has_stopped(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data:
        data.publish({"url": "http://here"})
        assert read_mesh(tmp_path) == {"url": "http://here"}
        data.withdraw()
    assert read_mesh(tmp_path) == {}


def test_only_servers_whose_url_is_not_given_are_started(tmp_path: Path) -> None:
    loaded = load(environ={"BRAID_NATS_URL": "nats://elsewhere:4222"})
    with DataDir(tmp_path) as data:
        chosen = embedded.choose(loaded, data)
    assert [server.name for server in chosen.servers] == ["redis", "postgres"]
    assert set(chosen.urls) == {"redis_url", "postgres_url"}
    assert chosen.urls["redis_url"] not in repr(chosen)


def test_three_nodes_know_each_other_and_their_clients_know_all_three(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data:
        chosen = embedded.choose(load({"nats_nodes": "3"}, {}), data)
        nodes = [server for server in chosen.servers if isinstance(server, NatsServer)]
        again = embedded.choose(load({"nats_nodes": "3"}, {}), data)
    assert [node.name for node in nodes] == ["nats-1", "nats-2", "nats-3"]
    assert again.urls == chosen.urls, "ports are remembered"
    assert chosen.urls["nats_url"] == ",".join(node.url for node in nodes)
    assert {node["monitor_url"] for node in chosen.nats_nodes.values()} == {
        node.monitor_url for node in nodes
    }
    routes = [node.routes for node in nodes if node.routes is not None]
    assert len({node.folder for node in nodes}) == len({route.port for route in routes}) == 3
    for route in routes:
        assert {route.port, *route.others} == {each.port for each in routes}
    nodes[0].prepare()
    config = nodes[0].folder / "nats.conf"
    assert config.stat().st_mode & 0o777 == 0o600
    assert config.read_text().count(nodes[0].password) == 4, "clients, routes in, two routes out"


@pytest.mark.parametrize(("before", "now"), [("1", "3"), ("3", "1")])
def test_what_nats_kept_with_other_nodes_is_not_forgotten_silently(
    tmp_path: Path, before: str, now: str
) -> None:
    with DataDir(tmp_path) as data:
        for server in embedded.choose(load({"nats_nodes": before}, {}), data).servers:
            if isinstance(server, NatsServer):
                server.prepare()
        with pytest.raises(MeshError, match=f"--nats-nodes {before}.*loses"):
            embedded.choose(load({"nats_nodes": now}, {}), data)
        elsewhere = load({"nats_nodes": now, "nats_url": "nats://elsewhere:4222"}, {})
        assert "nats_url" not in embedded.choose(elsewhere, data).urls


def test_more_replicas_than_nodes_are_refused_before_anything_is_started(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data:
        with pytest.raises(MeshError, match="--nats-nodes 3"):
            embedded.choose(load({"replicas": 3}, {}), data)
        with pytest.raises(MeshError, match="5 replicas"):
            embedded.choose(load({"replicas": 5, "nats_nodes": 3}, {}), data)
        embedded.choose(load({"replicas": 5, "nats_url": "nats://elsewhere:4222"}, {}), data)


def test_jetstream_may_take_at_least_what_the_streams_reserve() -> None:
    settings = Settings()
    reserved = settings.events_max_bytes + 3 * settings.work_max_bytes
    assert embedded.store_limit(settings) > reserved + settings.transcripts_max_bytes


def test_each_service_runs_as_often_as_asked_under_a_name_of_its_own() -> None:
    settings = Settings(workers=2, edges=3)
    names = [spec.name for spec in plan.service_specs(settings, {})]
    assert sorted(names) == [
        "context-1",
        "edge-1",
        "edge-2",
        "edge-3",
        "merger-1",
        "persistence-1",
        "worker-1",
        "worker-2",
    ]


def test_services_stop_in_the_order_of_a_request() -> None:
    specs = plan.service_specs(Settings(), {})
    order = [spec.name for spec in sorted(specs, key=lambda spec: spec.stage)]
    assert order == ["edge-1", "context-1", "worker-1", "merger-1", "persistence-1"]
    assert max(spec.stage for spec in specs) < plan.STAGES["simulator"] < plan.STAGES["server"]


def test_a_service_is_given_longer_than_its_own_drain_deadline() -> None:
    settings = Settings(drain_deadline_s=7)
    assert all(spec.deadline_s > 7 for spec in plan.service_specs(settings, {}))


def test_a_child_sees_the_settings_in_force_and_nothing_stale() -> None:
    """BRAID_CONFIG must not reach it: an option of ours would lose against nothing, but a file
    that changes between two starts would make two children differ."""
    environ = {"BRAID_CONFIG": "old.toml", "BRAID_PORT": "1", "PATH": "/bin"}
    settings = Settings(port=9000)
    given = plan.child_environ(settings, environ, "edge-1")
    assert given["PATH"] == "/bin"
    assert "BRAID_CONFIG" not in given
    in_child = load_settings(environ=given)
    assert in_child == settings.model_copy(update={"service_id": "edge-1"})


def test_a_port_with_a_listener_is_not_free_even_if_it_would_share() -> None:
    """Edges listen with SO_REUSEPORT: another mesh's edge must still count as taken."""
    port = free_ports(1)[0]
    assert is_free(port)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert not is_free(port)


def test_a_path_below_a_closed_folder_is_not_open_to_others(tmp_path: Path) -> None:
    """That is when PostgreSQL, started by root, needs more than another user."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").touch(mode=0o644)
    assert not open_to_others(closed / "file")
    assert not way_is_open(closed / "not-there-yet")
    assert way_is_open(Path("/usr/not-there-yet"))
    assert open_to_others(Path("/usr"))


def test_mesh_json_is_what_other_programs_can_read(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data:
        data.publish({"url": "http://here"})
        assert json.loads(data.mesh_file.read_text())["url"] == "http://here"
