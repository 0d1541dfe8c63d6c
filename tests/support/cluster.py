"""A NATS cluster of three nodes, as `braid up --nats-nodes 3` starts it; nodes may be killed."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from deploy.mesh.nats_cluster import joined_url, nats_servers, port_names
from deploy.mesh.nats_server import NatsServer
from deploy.mesh.ports import free_ports
from deploy.mesh.process import POLL_S, Process, kill, spawn, stop
from deploy.mesh.server import await_ready
from shared.settings import GIB

NODES = 3
READY_S = 30.0


class NatsCluster:
    """Its methods block. Nodes are named `nats-1` to `nats-3`, to the server `braid-nats-1`."""

    def __init__(self, folder: Path, password: str) -> None:
        names = port_names(NODES)
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        servers = nats_servers(folder, NODES, ports, password, 16 * GIB)
        self.servers: dict[str, NatsServer] = {server.name: server for server in servers}
        self.url = joined_url(servers)
        self._folder = folder
        self._processes: dict[str, Process] = {}
        # A node lives no longer than the thread that started it.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="nats-cluster")

    def start(self) -> None:
        """Start what does not run, and wait until all follow one leader."""
        missing = [name for name in self.servers if name not in self._processes]
        for name in missing:
            self._spawn(name)
        for name in self.servers:
            self.await_ready(name)

    def start_alone(self, node: str) -> None:
        """Start one node; it takes clients, and has nobody to elect a leader with."""
        self._spawn(node)
        ends = time.monotonic() + READY_S
        while not self.servers[node].greets():
            assert time.monotonic() < ends, f"{node} does not take clients"
            time.sleep(POLL_S)

    def kill(self, node: str) -> None:
        """SIGKILL; `start` brings it back with what it had stored."""
        kill(self._processes.pop(node))

    def freeze(self, node: str) -> None:
        self._processes[node].send_signal(signal.SIGSTOP)

    def thaw(self, node: str) -> None:
        self._processes[node].send_signal(signal.SIGCONT)

    def await_ready(self, node: str) -> None:
        log = self._folder / f"{node}.log"
        await_ready(self.servers[node], self._processes[node], log, READY_S)

    def stop(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        ends = time.monotonic() + 10
        for process in self._processes.values():
            stop(process, signal.SIGTERM, deadline_s=max(0.1, ends - time.monotonic()))
        self._processes.clear()
        self._starter.shutdown()

    def _spawn(self, node: str) -> None:
        server = self.servers[node]
        server.prepare()
        with (self._folder / f"{node}.log").open("ab") as output:
            started = self._starter.submit(spawn, server.command(), output)
            self._processes[node] = started.result()


@contextmanager
def nats_cluster_in(folder: Path, password: str) -> Iterator[NatsCluster]:
    cluster = NatsCluster(folder, password)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
