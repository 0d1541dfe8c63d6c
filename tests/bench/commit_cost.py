"""What a commit costs on one NATS node and on three: `python -m tests.bench.commit_cost`.

Fresh servers in a temporary folder; records of one size; one commit in flight for each stream.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from deploy.mesh.nats_server import NatsServer
from deploy.mesh.ports import free_ports
from deploy.mesh.server import Running
from shared.bus import EventLog, Link
from shared.ids import new_sid
from shared.settings import GIB, Settings
from shared.telemetry import configure
from tests.support.cluster import nats_cluster_in

PASSWORD = "bench"
WARM_UP = 100


@contextmanager
def nats(nodes: int, folder: Path) -> Iterator[str]:
    """The URL of so many nodes while the block runs."""
    if nodes == 1:
        port, monitor_port = free_ports(2)
        server = NatsServer(folder / "nats", port, monitor_port, PASSWORD, 16 * GIB)
        with Running(server, folder / "nats.log"):
            yield server.url
    else:
        with nats_cluster_in(folder, PASSWORD) as cluster:
            yield cluster.url


async def write(log: EventLog, records: int, payload: bytes) -> list[float]:
    """Seconds that each commit to a stream of its own took."""
    sid = new_sid()
    seq = await log.accept(sid, payload)
    took = []
    for _ in range(records):
        began = time.perf_counter()
        seq = await log.commit(sid, payload, expected_seq=seq)
        took.append(time.perf_counter() - began)
    return took


async def measure(url: str, nodes: int, streams: int, records: int, size: int) -> str:
    settings = Settings.model_validate({"nats_url": url, "nats_nodes": nodes})
    link = await Link.open(settings, "bench", "bench", dict)
    try:
        payload = b"x" * size
        await write(link.log, WARM_UP, payload)
        began = time.perf_counter()
        took = await asyncio.gather(
            *(write(link.log, records // streams, payload) for _ in range(streams))
        )
        elapsed = time.perf_counter() - began
    finally:
        await link.close()
    all_took = sorted(each for one in took for each in one)
    p50, p99 = (all_took[int(len(all_took) * share)] * 1000 for share in (0.5, 0.99))
    rate = len(all_took) / elapsed
    return f"{nodes:>5} {streams:>8} {p50:>8.2f} {p99:>8.2f} {rate:>10,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=300)
    options = parser.parse_args()
    configure(Settings(log_level="error"), "bench", "bench")
    print("nodes  streams   p50 ms   p99 ms  commits/s")
    for nodes in (1, 3):
        with (
            tempfile.TemporaryDirectory(prefix="commit-cost-") as folder,
            nats(nodes, Path(folder)) as url,
        ):
            for streams in (1, 20, 200):
                row = uvloop.run(measure(url, nodes, streams, options.records, options.bytes))
                print(row, flush=True)


if __name__ == "__main__":
    main()
