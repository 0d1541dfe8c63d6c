"""From the rows of a session to the chat messages of its last turns. Pure."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from shared.messages import ChatMessage

MAX_MESSAGES = 10


class HistoryRow(Struct, frozen=True, array_like=True):
    """A stored message, as far as a prompt needs it; `position` is 0 for the question."""

    sid: str
    position: int
    section: str | None
    content: str


class CachedHistory(Struct, frozen=True, array_like=True):
    """What Redis holds for a session: whose it is, and its rows, oldest first."""

    user_id: str
    rows: list[HistoryRow]


def chat_messages(rows: Sequence[HistoryRow], limit: int = MAX_MESSAGES) -> list[ChatMessage]:
    """The last `limit` messages of rows that are in order.

    A turn has one answer: its sections under their headings, or else the first branch that said
    anything. A turn cut by the limit loses its question, but never starts the history alone.
    """
    turns: dict[str, list[HistoryRow]] = {}
    for row in rows:
        turns.setdefault(row.sid, []).append(row)
    messages: list[ChatMessage] = []
    for turn in turns.values():
        question = "".join(row.content for row in turn if row.position == 0)
        answer = _answer([row for row in turn if row.position > 0])
        if question:
            messages.append({"role": "user", "content": question})
        if answer:
            messages.append({"role": "assistant", "content": answer})
    recent = messages[-limit:]
    return recent[1:] if len(messages) > limit and recent[0]["role"] != "user" else recent


def _answer(rows: Iterable[HistoryRow]) -> str:
    said = [row for row in rows if row.content]
    if len(said) > 1 and all(row.section for row in said):
        return "\n\n".join(f"## {row.section}\n\n{row.content}" for row in said)
    return said[0].content if said else ""
