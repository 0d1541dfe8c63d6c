"""How far a reader has come in a stream's log, and what an arriving record means for it. Pure.

| the record                                 | then                                     |
|--------------------------------------------|------------------------------------------|
| begins after the next event                | Gap: something was missed, nothing moves |
| begins with the next event                 | its events follow, numbered              |
| ends before the next event, or has none    | seen before, or an owner's claim: nothing|
| begins before and ends after the next event| the part not seen yet follows            |
"""

from shared.events import Event, Record


class Gap(Exception):
    """A record arrived whose predecessor did not: read the log again after `last_seq`."""


class Cursor:
    """Records go in, in any order and any number of times; each event comes out once, in order."""

    __slots__ = ("finished", "last_seq", "next_n")

    def __init__(self) -> None:
        self.next_n = 1
        self.last_seq = 0
        """Everything up to this sequence is known."""
        self.finished = False
        """The terminal has come out."""

    def take(self, seq: int, record: Record) -> tuple[int, tuple[Event, ...]]:
        """The events that follow, and the number of the first. Raises Gap.

        Both numbers and sequences of a stream only grow from record to record, so a record that
        begins no later than the next event leaves nothing unknown before it.
        """
        n = self.next_n
        if record.n_first > n:
            raise Gap
        events = record.events[n - record.n_first :]
        self.next_n = n + len(events)
        self.last_seq = max(self.last_seq, seq)
        if record.finished:
            self.finished = True
        return n, events
