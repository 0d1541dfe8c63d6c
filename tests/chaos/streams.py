"""Which streams a campaign asks for: everything about them follows from the seed. Pure."""

from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from shared.ids import ALPHABET, SID_LENGTH

Second = Literal["start", "middle", "late", "late middle"]
"""When a second reader comes, and from where: with the first or once it has come some way; after
the end, from the start or from the middle."""

MODEL = "sim-echo"
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class BranchPlan:
    label: str | None
    tokens: int
    gap_s: float
    ttft_s: float


@dataclass(frozen=True, slots=True)
class StreamPlan:
    sid: str
    question: str
    branches: tuple[BranchPlan, ...]
    mid_stream: Literal["continue", "restart", "fail"]
    brings_messages: bool
    second: Second | None
    middle: int
    """The event after which a second reader begins that begins in the middle."""
    cancel_after_s: float | None
    """From acceptance on."""
    seed: int
    """For what its clients do at random."""

    @property
    def body(self) -> dict[str, Any]:
        """The start request."""
        question: dict[str, Any] = {"message": self.question}
        if self.brings_messages:
            question = {"messages": [{"role": "user", "content": self.question}]}
        return {
            "id": self.sid,
            **question,
            "model": MODEL,
            "use_rag": False,
            "mid_stream": self.mid_stream,
            "timeouts": {"total_s": DEADLINE_S},
            "branches": [_branch(branch, self.seed) for branch in self.branches],
        }


def _branch(branch: BranchPlan, seed: int) -> dict[str, Any]:
    script = {
        "marker": True,
        "tokens": branch.tokens,
        "gap_s": branch.gap_s,
        "ttft_s": branch.ttft_s,
        "jitter": 0.5,
        "seed": seed,
    }
    return {"sim": script} | ({"label": branch.label} if branch.label else {})


def plan_streams(random: Random, count: int) -> list[StreamPlan]:
    return [_plan(random) for _ in range(count)]


def _plan(random: Random) -> StreamPlan:
    sid = "".join(random.choices(ALPHABET, k=SID_LENGTH))
    width = random.choices((1, 2, 3), (50, 30, 20))[0]
    labelled = width > 1 or random.random() < 0.3
    branches = tuple(
        BranchPlan(
            label=f"part {index}" if labelled else None,
            tokens=random.randint(4, 120),
            gap_s=round(random.uniform(0.01, 0.12), 3),
            ttft_s=round(random.uniform(0.0, 1.0), 3),
        )
        for index in range(width)
    )
    longest_s = max(branch.tokens * branch.gap_s + branch.ttft_s for branch in branches)
    cancels = random.random() < 0.1
    kinds: list[Second] = ["start", "middle", "late", "late middle"]
    return StreamPlan(
        sid=sid,
        question=f"What does {sid} say?",
        branches=branches,
        mid_stream=random.choices(("restart", "continue", "fail"), (50, 30, 20))[0],
        brings_messages=random.random() < 0.3,
        second=random.choice(kinds) if random.random() < 0.35 else None,
        middle=random.randint(1, 30),
        cancel_after_s=round(random.uniform(0.0, longest_s), 2) if cancels else None,
        seed=random.getrandbits(32),
    )
