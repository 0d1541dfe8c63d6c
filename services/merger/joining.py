"""Adjacent deltas of one branch and one kind become one event."""

from collections.abc import Iterable

from shared.events import Delta, Event
from shared.fold import join_tool_fragments

_OVERHEAD = 48
"""Bytes of an event besides its text, on the generous side."""


def weight_of(event: Event) -> int:
    """An upper estimate of an event's encoded size in bytes."""
    if not isinstance(event, Delta):
        return 1024
    tool = event.tool_call
    texts = (event.text, event.reasoning, tool.arguments if tool is not None else "")
    return _OVERHEAD + sum(len(text) if text.isascii() else 4 * len(text) for text in texts)


def join_adjacent(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same text in fewer events. An event keeps its meaning only until it is committed."""
    joined: list[Event] = []
    run: list[Delta] = []
    for event in events:
        if isinstance(event, Delta):
            if run and not _continues(run[-1], event):
                joined.append(_join(run))
                run = []
            run.append(event)
        else:
            if run:
                joined.append(_join(run))
                run = []
            joined.append(event)
    if run:
        joined.append(_join(run))
    return tuple(joined)


def _continues(first: Delta, second: Delta) -> bool:
    if first.branch != second.branch:
        return False
    if first.tool_call is not None and second.tool_call is not None:
        new_call = bool(second.tool_call.id) and second.tool_call.id != first.tool_call.id
        return first.tool_call.index == second.tool_call.index and not new_call
    if first.tool_call is not None or second.tool_call is not None:
        return False
    return bool(first.text) == bool(second.text)


def _join(run: list[Delta]) -> Delta:
    first = run[0]
    if len(run) == 1:
        return first
    if first.tool_call is not None:
        call = first.tool_call
        for delta in run[1:]:
            if delta.tool_call is not None:
                call = join_tool_fragments(call, delta.tool_call)
        return Delta(first.branch, tool_call=call)
    if first.text:
        return Delta(first.branch, text="".join([delta.text for delta in run]))
    return Delta(first.branch, reasoning="".join([delta.reasoning for delta in run]))
