"""What is stored of a stream whose log is past retention, as the persistence service tells it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from shared.breaker import Breaker
from shared.bus import Bus, BusError
from shared.errors import BraidError
from shared.messages import (
    ReadTranscript,
    Transcript,
    TranscriptPart,
    msgpack_encoder,
    stored_turn_decoder,
    transcript_part_decoder,
)
from shared.subjects import Subjects

MAX_OPEN: Final = 16
"""Transcripts in the memory of one edge; the next is refused with Retry-After."""
MAX_BYTES: Final = 32 * 1024 * 1024
"""Of one transcript; a larger one is not sent at all."""
PART_TIMEOUT_S: Final = 2.5
CHECK_TIMEOUT_S: Final = 0.1
"""A start waits no longer to hear whether its id was used before."""
RETRY_AFTER_S: Final = 2.0

_ADVICE: Final = {
    "waiting": "this stream is past retention and its transcript is still being stored",
    "away": "this stream is not in the log, and the transcripts can't be read right now",
}


class Archive:
    """Asks any persistence service. Whose a transcript is, is checked there."""

    def __init__(self, bus: Bus, subjects: Subjects) -> None:
        self._bus = bus
        self._subjects = subjects
        self._open = 0
        self._breaker = Breaker("archive")

    @asynccontextmanager
    async def opened(self, sid: str, user_id: str) -> AsyncIterator[list[Transcript]]:
        """The messages of a turn, in order, whole; none when nothing is stored.

        Raises BraidError: `not_found` for another user's, `unavailable` when it can't be told,
        `overloaded`, `gone` for what is too large; BusError when no persistence service answers.
        """
        if self._open >= MAX_OPEN:
            raise BraidError(
                "overloaded",
                "too many transcripts are being read: send the same request again",
                retry_after_s=RETRY_AFTER_S,
            )
        self._open += 1
        try:
            yield await self._read(sid, user_id)
        finally:
            self._open -= 1

    async def was_used(self, sid: str, user_id: str) -> bool:
        """Whether this user's stream is stored already; False as well when nobody can tell in time.

        Starting doesn't depend on Postgres. Raises BraidError `not_found` for another user's.
        """
        if not self._breaker.allows():
            return False
        try:
            part = await self._ask(ReadTranscript(sid, user_id), CHECK_TIMEOUT_S)
        except BusError as error:
            self._breaker.failed(error)
            return False
        self._breaker.succeeded()
        _require_own(part)
        return part.state in {"found", "waiting"}

    async def _read(self, sid: str, user_id: str) -> list[Transcript]:
        parts: list[bytes] = []
        length, size = 0, 1
        while length < size:
            part = await self._ask(ReadTranscript(sid, user_id, length), PART_TIMEOUT_S)
            _require_own(part)
            if part.state == "unknown" and not parts:
                return []
            if part.state in _ADVICE:
                _refuse(_ADVICE[part.state])
            if part.size > MAX_BYTES:
                raise BraidError(
                    "gone", "this stream is past retention, and its transcript is too long to send"
                )
            if not part.data or (parts and part.size != size):
                _refuse("the transcript has changed while it was read")
            parts.append(part.data)
            length, size = length + len(part.data), part.size
        return stored_turn_decoder.decode(b"".join(parts))

    async def _ask(self, question: ReadTranscript, timeout_s: float) -> TranscriptPart:
        """Raises BusError."""
        subject = self._subjects.archive(question.sid)
        payload = msgpack_encoder.encode(question)
        answer = await self._bus.request(subject, payload, timeout_s=timeout_s)
        try:
            return transcript_part_decoder.decode(answer.data)
        except msgspec.DecodeError as error:
            raise BusError("the archive's answer makes no sense") from error


def _require_own(part: TranscriptPart) -> None:
    if part.state == "foreign":
        raise BraidError("not_found", "there is no such stream")


def _refuse(why: str) -> None:
    raise BraidError(
        "unavailable", f"{why}: send the same request again", retry_after_s=RETRY_AFTER_S
    )
