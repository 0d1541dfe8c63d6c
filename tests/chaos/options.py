"""What a campaign is told to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["kill", "stop"]
Victim = tuple[str, Kind]
"""A service and what is done to one of its processes."""

SERVICES = ("edge", "context", "worker", "merger", "persistence")
ALL: tuple[Victim, ...] = (
    *((service, "kill") for service in SERVICES),
    *((service, "stop") for service in SERVICES),
    ("nats", "kill"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    folder: Path
    """Where the mesh and the journals are kept."""
    seed: int
    kills: int = 60
    streams: int = 2_000
    concurrency: int = 150
    victims: tuple[Victim, ...] = ALL
    """Who is hit, in turns: each round hits all of these, in a random order."""
    gap_s: tuple[float, float] = (1.0, 4.0)
    """Shortest and longest time from the mesh's healing to the next fault."""
    overlap: bool = False
    """The next fault does not wait for the healing of the last, unless it is the same service."""
    copies: int = 2
    """Processes of each service."""
    nats_nodes: int = 1
    ack_wait_s: float = 5.0
    """The lease: a stopped process is continued well after it."""
