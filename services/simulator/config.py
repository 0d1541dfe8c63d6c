"""Settings of the simulator: one frozen value, passed in by whoever starts it."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MODELS = ("sim-echo", "sim-reason", "sim-embed")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """Where to listen, and how an answer runs when the request does not say."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free port; `Simulator.port` tells which."""
    reuse_port: bool = False
    """Lets several processes share one port, for load beyond one core."""

    ttft_s: float = 0.05
    gap_s: float = 0.01
    tokens: int = 80
    seed: int = 0

    models: tuple[str, ...] = DEFAULT_MODELS
    """Listed at /v1/models; any other name is a 404. Empty: every name is accepted."""
    api_keys: frozenset[str] | None = None
    """None: no key is needed."""
    embedding_dimensions: int = 1536

    journal_entries: int = 10_000
    journal_bytes: int = 64 * 1024 * 1024
    """The oldest journal entries go first, by either limit."""
    max_body_bytes: int = 16 * 1024 * 1024
    drain_s: float = 5.0
    """How long running answers may go on after drain; then their connections are aborted."""
