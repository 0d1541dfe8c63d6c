"""What a branch has sent and the merger has not acknowledged yet. Pure: times are passed in."""

from collections import deque
from typing import Literal, TypeAlias

from shared.events import Delta
from shared.messages import BranchEnd, Chunk, msgpack_encoder

Seam: TypeAlias = Literal["", "continue", "restart", "fail"]

MAX_RESEND_BACKOFF = 8
"""Times `resend_after_s`: a merger that is away is not buried under repetitions."""

_encode = msgpack_encoder.encode


class Outbox:
    """Numbers the chunks of one attempt at a time and keeps each until its cumulative ack."""

    def __init__(self, branch: int, *, max_chunks: int, max_bytes: int) -> None:
        self._branch = branch
        self._max_chunks = max_chunks
        self._max_bytes = max_bytes
        self._unacked: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._quiet_since = 0.0
        """When the oldest unacknowledged chunk was last sent, or the merger last got on."""
        self._resends = 0
        self.attempt = -1
        self.seam: Seam = ""
        self._kept_chars = 0
        self.next_k = 0
        self.acked_k = -1
        self.ended = False

    def __len__(self) -> int:
        return len(self._unacked)

    @property
    def full(self) -> bool:
        return len(self._unacked) > self._max_chunks or self._bytes > self._max_bytes

    def begin(self, attempt: int, seam: Seam = "", kept_chars: int = 0) -> None:
        """Start a higher attempt; what is left of the last one is void."""
        if attempt <= self.attempt:
            raise ValueError(f"attempt {attempt} does not follow {self.attempt}")
        self.forget()
        self._resends = 0
        self.ended = False
        self.attempt = attempt
        self.seam = seam
        self._kept_chars = kept_chars
        self.next_k = 0
        self.acked_k = -1

    def add(self, deltas: tuple[Delta, ...], end: BranchEnd | None, now: float) -> bytes:
        """Number and keep the attempt's next chunk; returns it encoded, to be sent now."""
        if self.ended:
            raise ValueError("nothing follows the end of a branch")
        k = self.next_k
        if k == 0:
            chunk = Chunk(self._branch, self.attempt, 0, deltas, end, self.seam, self._kept_chars)
        else:
            chunk = Chunk(self._branch, self.attempt, k, deltas, end)
        payload = _encode(chunk)
        if not self._unacked:
            self._quiet_since = now
            self._resends = 0
        self._unacked.append((k, payload))
        self._bytes += len(payload)
        self.next_k = k + 1
        self.ended = end is not None
        return payload

    def acknowledge(self, attempt: int, k: int, now: float) -> bool:
        """Forget what is committed; True if that got the branch on."""
        if attempt != self.attempt or k <= self.acked_k:
            return False
        self.acked_k = min(k, self.next_k - 1)
        unacked = self._unacked
        while unacked and unacked[0][0] <= k:
            self._bytes -= len(unacked.popleft()[1])
        self._quiet_since = now
        self._resends = 0
        return True

    def forget(self) -> None:
        """Nobody needs what is unacknowledged any more."""
        self._unacked.clear()
        self._bytes = 0

    def is_due(self, now: float, resend_after_s: float) -> bool:
        """The merger has been silent for too long; ever longer with every repetition."""
        patience_s = resend_after_s * min(2**self._resends, MAX_RESEND_BACKOFF)
        return bool(self._unacked) and now - self._quiet_since >= patience_s

    def again(self, now: float, *, asked: bool) -> list[bytes]:
        """Everything unacknowledged, in order, to be sent once more; `asked` for by an owner."""
        self._quiet_since = now
        self._resends = 0 if asked else min(self._resends + 1, MAX_RESEND_BACKOFF)
        return [payload for _, payload in self._unacked]
