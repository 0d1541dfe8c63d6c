"""What a campaign is told to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["kill", "stop"]
Victim = tuple[str, Kind]
"""A service and what is done to one of its processes."""

RESTART_S = 2.0
"""About how long a killed process is away."""

SERVICES = ("edge", "context", "worker", "merger", "persistence")
ALL: tuple[Victim, ...] = (
    *((service, "kill") for service in SERVICES),
    *((service, "stop") for service in SERVICES),
    ("nats", "kill"),
)
"""Without a frozen NATS server: one that is alone stops everything, which proves nothing."""
IN_A_CLUSTER: tuple[Victim, ...] = (*ALL, ("nats", "stop"))


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
    away: tuple[float, float] = (1.3, 1.8)
    """For how many leases a stopped process is stopped: shortest and longest."""

    @property
    def usual_hit_s(self) -> float:
        """About how long a fault takes, with its healing and the gap before it."""
        stops = sum(kind == "stop" for _, kind in self.victims) / len(self.victims)
        return sum(self.gap_s) / 2 + RESTART_S + stops * self.ack_wait_s * sum(self.away) / 2
