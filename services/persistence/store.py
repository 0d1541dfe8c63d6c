"""Writing a batch of transcripts in one transaction.

Every statement may be repeated without effect: a batch that was committed, but whose items are
delivered again, changes nothing.
"""

from collections.abc import Sequence
from dataclasses import fields
from enum import Enum, auto

from psycopg import AsyncConnection, DataError, Error, IntegrityError
from psycopg.rows import TupleRow

from services.persistence.rows import MessageRow, assemble, claims, message_id, row_of
from shared.messages import QuestionAsked, Transcript, msgpack_encoder, transcript_decoder

Connection = AsyncConnection[TupleRow]


class Outcome(Enum):
    STORED = auto()
    """New, or the piece that completed a message."""
    STAGED = auto()
    """A piece that did not complete its message."""
    DUPLICATE = auto()
    """It was there before."""
    FOREIGN = auto()
    """The session is another user's: nothing was written."""


# Rows are locked in a fixed order (users, sessions, messages, each sorted), so that two writers
# wait for each other and never deadlock. The session's lock also makes them take turns in a turn.
USERS = """
INSERT INTO users (id) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING
"""
SESSIONS = """
INSERT INTO sessions (id, user_id, created_at, updated_at)
SELECT * FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::timestamptz[])
ON CONFLICT (id) DO UPDATE SET
    created_at = least(sessions.created_at, excluded.created_at),
    updated_at = greatest(sessions.updated_at, excluded.updated_at)
WHERE sessions.user_id = excluded.user_id
"""
OWNERS = "SELECT id, user_id FROM sessions WHERE id = ANY(%s)"

KNOWN = "SELECT id FROM messages WHERE id = ANY(%s)"
STAGE = """
INSERT INTO message_pieces (session_id, message_id, piece, pieces, payload)
SELECT * FROM unnest(%s::text[], %s::text[], %s::int[], %s::int[], %s::bytea[])
ON CONFLICT DO NOTHING
"""
TAKE_COMPLETE = """
DELETE FROM message_pieces WHERE (session_id, message_id) IN (
    SELECT session_id, message_id FROM message_pieces
    WHERE (session_id, message_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
    GROUP BY session_id, message_id, pieces HAVING count(*) = pieces
) RETURNING session_id, message_id, payload
"""

# The parameters are the fields of MessageRow.
MESSAGES = """
INSERT INTO messages (
    id, session_id, sid, user_id, role, branch, section, model, status, content, reasoning,
    tool_calls, finish_reason, usage, ttft_ms, duration_ms, created_at, position, turn_at
)
SELECT id, session_id, sid, user_id, role, branch, section, model, status, content, reasoning,
    tool_calls::jsonb, finish_reason, usage::jsonb, ttft_ms, duration_ms, created_at, position,
    coalesce((SELECT created_at FROM messages WHERE id = new.sid || '.q'), created_at)
FROM unnest(
    %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int[], %s::text[], %s::text[],
    %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::float8[],
    %s::float8[], %s::timestamptz[], %s::int[]
) AS new (
    id, session_id, sid, user_id, role, branch, section, model, status, content, reasoning,
    tool_calls, finish_reason, usage, ttft_ms, duration_ms, created_at, position
)
ON CONFLICT DO NOTHING
RETURNING id
"""
# An answer may come before its question.
ALIGN_TURNS = """
UPDATE messages SET turn_at = question.created_at
FROM messages AS question
WHERE question.id = ANY(%s)
    AND messages.sid = question.sid AND messages.session_id = question.session_id
    AND messages.turn_at <> question.created_at
"""


async def store(connection: Connection, transcripts: Sequence[Transcript]) -> list[Outcome]:
    """Write clean transcripts in one transaction; one outcome for each, in order.

    Raises psycopg.Error, and then nothing was written.
    """
    async with connection.transaction():
        owners = await _claim_sessions(connection, transcripts)
        ours = [t for t in transcripts if owners.get(t.session_id) == t.user_id]
        partial = [t for t in ours if t.pieces > 1]
        wholes = [t for t in ours if t.pieces <= 1]
        waiting, completed = await _stage(connection, partial) if partial else (set(), [])
        stored = await _insert(connection, [*wholes, *completed])
    return _outcomes(transcripts, owners, waiting, stored)


def is_fault_of_row(error: Error) -> bool:
    """Whether a statement failed for what it was given, rather than for the server's state."""
    too_large = (error.sqlstate or "").startswith("54")  # program_limit_exceeded
    return isinstance(error, DataError | IntegrityError) or too_large


async def _claim_sessions(
    connection: Connection, transcripts: Sequence[Transcript]
) -> dict[str, str]:
    """Make users and sessions; returns whose each session is."""
    claimed = claims(transcripts)
    await connection.execute(USERS, [sorted({claim.user_id for claim in claimed})])
    await connection.execute(
        SESSIONS,
        [
            [claim.session_id for claim in claimed],
            [claim.user_id for claim in claimed],
            [claim.first_at for claim in claimed],
            [claim.last_at for claim in claimed],
        ],
    )
    cursor = await connection.execute(OWNERS, [[claim.session_id for claim in claimed]])
    return dict(await cursor.fetchall())


async def _stage(
    connection: Connection, partial: Sequence[Transcript]
) -> tuple[set[str], list[Transcript]]:
    """Keep pieces; returns the ids of messages still incomplete, and those now complete."""
    ids = sorted({message_id(piece) for piece in partial})
    known = {row[0] for row in await (await connection.execute(KNOWN, [ids])).fetchall()}
    new = [piece for piece in partial if message_id(piece) not in known]
    if not new:
        return set(), []
    sessions = [piece.session_id for piece in new]
    messages = [message_id(piece) for piece in new]
    await connection.execute(
        STAGE,
        [
            sessions,
            messages,
            [piece.piece for piece in new],
            [piece.pieces for piece in new],
            [msgpack_encoder.encode(piece) for piece in new],
        ],
    )
    cursor = await connection.execute(TAKE_COMPLETE, [sessions, messages])
    taken: dict[tuple[str, str], list[Transcript]] = {}
    async for session_id, ident, payload in cursor:
        taken.setdefault((session_id, ident), []).append(transcript_decoder.decode(payload))
    complete = [whole for pieces in taken.values() if (whole := assemble(pieces)) is not None]
    return set(messages) - {message_id(whole) for whole in complete}, complete


async def _insert(connection: Connection, wholes: Sequence[Transcript]) -> set[str]:
    """Insert what is new; returns the ids of what was."""
    by_id = {message_id(whole): whole for whole in reversed(wholes)}  # the first delivery wins
    if not by_id:
        return set()
    rows = [row_of(by_id[ident]) for ident in sorted(by_id)]
    columns = [[getattr(row, field.name) for row in rows] for field in fields(MessageRow)]
    cursor = await connection.execute(MESSAGES, columns)
    stored = {row[0] for row in await cursor.fetchall()}
    questions = [ident for ident in stored if isinstance(by_id[ident], QuestionAsked)]
    if questions:
        await connection.execute(ALIGN_TURNS, [questions])
    return stored


def _outcomes(
    transcripts: Sequence[Transcript], owners: dict[str, str], waiting: set[str], stored: set[str]
) -> list[Outcome]:
    fresh = set(stored)
    outcomes = []
    for transcript in transcripts:
        ident = message_id(transcript)
        if owners.get(transcript.session_id) != transcript.user_id:
            outcomes.append(Outcome.FOREIGN)
        elif ident in fresh:
            fresh.discard(ident)
            outcomes.append(Outcome.STORED)
        elif transcript.pieces > 1 and (ident in waiting or ident in stored):
            outcomes.append(Outcome.STAGED)
        else:
            outcomes.append(Outcome.DUPLICATE)
    return outcomes
