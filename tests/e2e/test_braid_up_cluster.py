"""`braid up --nats-nodes 3`: a cluster that is ready when the mesh is, and heals."""

import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.mesh.ports import free_ports
from tests.e2e.test_braid_up import READY_S, Up, braid


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def begin(data_dir: Path = tmp_path / "data", **more: str) -> Up:
        started.append(Up(data_dir, free_ports(1)[0], BRAID_NATS_NODES="3", **more))
        return started[-1]

    yield begin
    for up in started:
        up.close()


def ask(up: Up, sid: str) -> str:
    """The whole stream of a question, as text."""
    request = urllib.request.Request(
        f"{up.url}/v1/streams",
        json.dumps({"id": sid, "message": "hello"}).encode(),
        {"content-type": "application/json", "accept": "text/event-stream"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def test_a_cluster_answers_outlives_each_of_its_nodes_and_the_doctor_sees_it(
    start: Callable[..., Up],
) -> None:
    up = start()
    up.await_ready()
    mesh = up.mesh()
    names = ["nats-1", "nats-2", "nats-3"]
    assert [node["name"] for node in mesh["nats_servers"]] == names
    assert [node["pid"] for node in mesh["nats_servers"]] == [
        mesh["processes"][name]["pid"] for name in names
    ]
    assert (mesh["replicas"], mesh["event_shards"], mesh["nats_url"].count(",")) == (3, 6, 2)

    os.kill(mesh["nats_servers"][0]["pid"], signal.SIGKILL)
    assert '"type":"done"' in ask(up, "Stream0000000000000001")
    up.wait_for(lambda: up.log("child.restarted"), READY_S)
    assert up.mesh()["nats_servers"][0]["pid"] != mesh["nats_servers"][0]["pid"]

    def is_well() -> bool:
        doctor = braid("doctor", "--data-dir", str(up.data_dir))
        assert "meta leader" in doctor.stdout
        return doctor.returncode == 0 and doctor.stdout.count("3 of 3 current") == 11

    up.wait_for(is_well, READY_S)
    assert up.stop() == 0, up.output[-4000:]

    alone = braid("up", "--data-dir", str(up.data_dir), "--port", "0", "--nats-nodes", "1")
    assert alone.returncode == 2
    assert "start it with --nats-nodes 3" in alone.stderr
