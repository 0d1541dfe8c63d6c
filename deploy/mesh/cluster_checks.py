"""What `braid doctor` says of a NATS cluster: its nodes, its leader, where each stream is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from deploy.mesh.finding import Finding
from deploy.mesh.nats_server import meta_cluster
from shared.bus import Replicas

DOWN: Final = "`braid up` starts it again; when it does not, read its log"
BEHIND: Final = "wait until it has caught up; when it does not, read that node's log"


def nodes_of(monitors: Mapping[str, str]) -> list[Finding]:
    """A finding for every node and one for their leader. Blocks."""
    with ThreadPoolExecutor(len(monitors)) as pool:
        states = dict(zip(monitors, pool.map(meta_cluster, monitors.values()), strict=True))
    return [*(_node(name, state) for name, state in states.items()), _leader(states)]


def _node(name: str, state: Mapping[str, Any] | None) -> Finding:
    if state is None:
        return Finding(name, False, "does not answer", DOWN)
    return Finding(name, True, f"one of {state.get('cluster_size', '?')} nodes")


def _leader(states: Mapping[str, Mapping[str, Any] | None]) -> Finding:
    named = {str(state.get("leader") or "none") for state in states.values() if state is not None}
    detail = ", ".join(sorted(named)) or "nobody answers"
    if len(named) == 1 and "none" not in named:
        return Finding("meta leader", True, detail)
    return Finding("meta leader", False, detail, "two of the three nodes must run to elect one")


def streams_of(states: Sequence[Replicas], replicas: int) -> list[Finding]:
    """A finding for every stream that is to be kept more than once."""
    return [_stream(state, replicas) for state in states if replicas > 1]


def _stream(state: Replicas, replicas: int) -> Finding:
    what = f"stream {state.stream}"
    if not state.leader:
        return Finding(what, False, "no leader", "two of the three nodes must run to elect one")
    detail = f"{1 + len(state.current)} of {replicas} current, leader {state.leader}"
    if state.behind:
        return Finding(what, False, f"{detail}, behind: {', '.join(state.behind)}", BEHIND)
    if 1 + len(state.current) < replicas:
        return Finding(what, False, detail, "restart the services with BRAID_REPLICAS as wanted")
    return Finding(what, True, detail)
