"""Where in the journals of a good run a fault can be planted. Pure."""

from collections.abc import Callable

from msgspec.structs import replace

from tests.chaos.journals import Journals, Logged, Reading, Row, Seen

Mutation = Callable[[Journals], object]
"""Changes the journals as a fault of the mesh would have."""


def reading(journals: Journals, reader: str = "first", having: str = "") -> Reading:
    """The first such reading that has an event with this text."""
    return next(
        each
        for each in journals.readings
        if each.reader == reader and any(having in event.raw for event in each.events)
    )


def at(read: Reading, text: str, start: int = 0) -> int:
    """Where the first event with this text is."""
    return next(i for i, event in enumerate(read.events) if i >= start and text in event.raw)


def changed(event: Seen, old: str, new: str) -> Seen:
    assert old in event.raw
    return replace(event, raw=event.raw.replace(old, new, 1))


def edit(read: Reading, index: int, old: str, new: str) -> None:
    read.events[index] = changed(read.events[index], old, new)


def middle(read: Reading) -> int:
    """A delta in the middle of what was read."""
    return at(read, '"delta"', len(read.events) // 2)


def records(journals: Journals, *, epochs: int = 1) -> list[Logged]:
    """The log of a stream that had at least so many owners."""
    return next(log for log in journals.log.values() if log[-1].epoch >= epochs)


def answer(journals: Journals) -> Row:
    return next(row for row in journals.rows if row.role == "assistant" and row.content)
