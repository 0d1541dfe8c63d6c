"""`braid up` brings a working mesh, keeps it working, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from deploy.mesh.ports import free_ports

READY_S = 60.0
STOP_S = 60.0


class Up:
    """A `braid up` in a process of its own, and what it has said so far."""

    def __init__(self, data_dir: Path, port: int, **variables: str) -> None:
        self.data_dir = data_dir
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "deploy.cli.main", "up", "--data-dir", str(data_dir)],
            env={**os.environ, "BRAID_PORT": str(port), "BRAID_LOG_FORMAT": "json", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            self._lines.extend(iter(output.readline, ""))

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_for(self, condition: Callable[[], object], deadline_s: float) -> None:
        ends = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < ends, self.output[-4000:]
            time.sleep(0.02)

    def await_ready(self) -> None:
        self.wait_for(lambda: f"braidstream ready at {self.url}" in self.output, READY_S)

    def log(self, event: str) -> list[dict[str, Any]]:
        """What it has logged of one kind."""
        entries = [json.loads(line) for line in self._lines if line.startswith("{")]
        return [entry for entry in entries if entry.get("event") == event]

    def mesh(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.data_dir / "mesh.json").read_text())
        return facts

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(STOP_S)
        self._reader.join(STOP_S)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(STOP_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def begin(data_dir: Path = tmp_path / "data", port: int | None = None, **more: str) -> Up:
        started.append(Up(data_dir, port or free_ports(1)[0], **more))
        return started[-1]

    yield begin
    for up in started:
        up.close()


def braid(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-P", "-m", "deploy.cli.main", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_mesh_starts_heals_and_stops_without_leaving_anything(start: Callable[..., Up]) -> None:
    up = start()
    up.await_ready()
    mesh = up.mesh()
    assert set(mesh["processes"]) == {
        *("nats", "redis", "postgres", "simulator"),
        *("edge-1", "context-1", "worker-1", "merger-1", "persistence-1"),
    }

    doctor = braid("doctor", "--data-dir", str(up.data_dir))
    assert doctor.returncode == 0, doctor.stdout
    assert "PROBLEM" not in doctor.stdout

    with psycopg.connect(mesh["postgres_url"]) as connection:
        found = connection.execute("SELECT count(*) FROM alembic_version").fetchone()
    assert found == (1,)

    killed = mesh["processes"]["merger-1"]["pid"]
    os.kill(killed, signal.SIGKILL)
    up.wait_for(lambda: up.log("child.restarted"), READY_S)
    assert up.log("child.exited")[0]["name"] == "merger-1"
    assert up.log("child.exited")[0]["signal"] == "SIGKILL"
    assert up.mesh()["processes"]["merger-1"]["pid"] != killed

    family = up.children()
    assert len(family) >= 9
    assert up.stop() == 0, up.output[-4000:]
    stopped = [entry["name"] for entry in up.log("child.stopped")]
    assert stopped[:5] == ["edge-1", "context-1", "worker-1", "merger-1", "persistence-1"]
    assert not [process for process in family if process.is_running()]
    assert not (up.data_dir / "mesh.json").exists()


def test_a_second_start_keeps_the_data_and_is_quick(start: Callable[..., Up]) -> None:
    first = start()
    first.await_ready()
    with psycopg.connect(first.mesh()["postgres_url"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
    assert first.stop(signal.SIGINT) == 0

    second = start()
    second.await_ready()
    assert second.log("mesh.ready")[0]["seconds"] <= 10
    with psycopg.connect(second.mesh()["postgres_url"]) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
    assert second.stop() == 0


def test_several_workers_mergers_and_edges_share_one_port(start: Callable[..., Up]) -> None:
    up = start(BRAID_WORKERS="2", BRAID_MERGERS="2", BRAID_EDGES="2")
    up.await_ready()
    assert {"worker-2", "merger-2", "edge-2"} <= set(up.mesh()["processes"])
    assert up.stop() == 0, up.output[-4000:]


def test_after_a_killed_supervisor_the_next_start_works(start: Callable[..., Up]) -> None:
    first = start()
    first.await_ready()
    family = first.children()
    first.process.kill()
    second = start()
    second.await_ready()
    assert not [process for process in family if _is_alive(process)]
    assert second.stop() == 0


def _is_alive(process: psutil.Process) -> bool:
    """A zombie whose new parent has not reaped it yet is dead enough."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_second_mesh_on_the_folder_or_port_is_told_what_to_change(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start()
    up.await_ready()
    same_folder = braid("up", "--data-dir", str(up.data_dir), "--port", "0")
    assert same_folder.returncode == 2
    assert f"(process {up.process.pid})" in same_folder.stderr
    port = up.url.rpartition(":")[2]
    same_port = braid("up", "--data-dir", str(tmp_path / "other"), "--port", port)
    assert same_port.returncode == 2
    assert f"port {port}" in same_port.stderr
    assert "BRAID_PORT" in same_port.stderr
    assert not (tmp_path / "other").exists()
    assert "Traceback" not in same_folder.stderr + same_port.stderr
    assert up.stop() == 0


def test_a_stop_during_the_start_ends_it_cleanly(start: Callable[..., Up]) -> None:
    up = start()
    up.wait_for(lambda: "nats" in _processes(up.data_dir), READY_S)
    family = up.children()
    assert up.stop() == 0, up.output[-4000:]
    assert not [process for process in family if _is_alive(process)]


def _processes(data_dir: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((data_dir / "mesh.json").read_text())["processes"]
    except FileNotFoundError:
        return {}
    return found


def test_a_misspelt_variable_stops_the_start_with_one_line(tmp_path: Path) -> None:
    refused = braid("up", "--data-dir", str(tmp_path / "data"), BRAID_WORKRES="2")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "braid: BRAID_WORKRES: no such setting; did you mean BRAID_WORKERS?"
    ]
    assert not (tmp_path / "data").exists()


def test_a_dead_server_given_by_url_is_named_by_the_migrations(tmp_path: Path) -> None:
    url = f"postgresql://nobody:hunter2@127.0.0.1:{free_ports(1)[0]}/x"
    refused = braid("up", "--data-dir", str(tmp_path), "--port", "0", BRAID_POSTGRES_URL=url)
    assert refused.returncode == 2
    assert "migrations failed" in refused.stderr
    assert "hunter2" not in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr


def test_doctor_says_what_to_do_when_nothing_runs(tmp_path: Path) -> None:
    port = str(free_ports(1)[0])
    urls = {
        f"BRAID_{name.upper()}_URL": f"{name}://127.0.0.1:{free_ports(1)[0]}/0"
        for name in ("nats", "redis", "postgres")
    }
    sick = braid("doctor", "--data-dir", str(tmp_path), "--port", port, **urls)
    assert sick.returncode == 1
    for word in ("nats", "redis", "postgres", "braid up", "OPENAI_BASE_URL"):
        assert word in sick.stdout
    assert "Traceback" not in sick.stderr
