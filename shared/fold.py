"""Folding a stream's records into what it says: the one place that knows how a text comes about.

Pure. The merger folds its own records into transcripts, the edge folds the log into snapshots, so
that what is stored is what was streamed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from shared.events import (
    Accepted,
    BranchContinued,
    BranchDone,
    BranchFailed,
    BranchReset,
    BranchStarted,
    Cancelled,
    ContextLoaded,
    Delta,
    Done,
    Event,
    Failed,
    Incomplete,
    Record,
    Stats,
    Terminal,
    ToolFragment,
    Usage,
)


@dataclass(slots=True)
class BranchView:
    """One branch so far; after a reset, only what its newest attempt said."""

    branch: int
    section: str | None = None
    model: str | None = None
    status: str = "waiting"
    """waiting, streaming, done, incomplete, failed or cancelled."""
    finish_reason: str | None = None
    usage: Usage | None = None
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    error: BranchFailed | None = None
    attempts: int = 1
    _text: StringIO = field(default_factory=StringIO)
    _reasoning: StringIO = field(default_factory=StringIO)
    _tools: dict[int, ToolFragment] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self._text.getvalue()

    @property
    def reasoning(self) -> str:
        return self._reasoning.getvalue()

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """Whole tool calls in the OpenAI form, by index."""
        return [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for _, call in sorted(self._tools.items())
        ]

    def add(self, delta: Delta) -> None:
        self.status = "streaming"
        if delta.text:
            self._text.write(delta.text)
        if delta.reasoning:
            self._reasoning.write(delta.reasoning)
        if delta.tool_call is not None:
            self._tools[delta.tool_call.index] = join_tool_fragments(
                self._tools.get(delta.tool_call.index), delta.tool_call
            )

    def reset(self) -> None:
        self.status = "waiting"
        self.attempts += 1
        self._text = StringIO()
        self._reasoning = StringIO()
        self._tools.clear()


@dataclass(slots=True)
class StreamView:
    """A stream so far: fold its records in order."""

    branches: dict[int, BranchView] = field(default_factory=dict)
    accepted: Accepted | None = None
    context: ContextLoaded | None = None
    stats: Stats | None = None
    terminal: Terminal | None = None
    position: int = 0
    """`n` of the last event."""

    def apply(self, record: Record) -> None:
        if record.accepted is not None:
            self.accepted = record.accepted
        for event in record.events:
            self._apply_event(event)
        self.position = max(self.position, record.n_next - 1)

    def branch(self, index: int) -> BranchView:
        return self.branches.setdefault(index, BranchView(index))

    def _apply_event(self, event: Event) -> None:
        match event:
            case Delta():
                self.branch(event.branch).add(event)
            case ContextLoaded():
                self.context = event
            case BranchStarted():
                view = self.branch(event.branch)
                view.section, view.model = event.section or None, event.model or None
            case BranchReset():
                self.branch(event.branch).reset()
            case BranchContinued():
                self.branch(event.branch).attempts += 1
            case BranchDone():
                view = self.branch(event.branch)
                view.status = "incomplete" if event.finish_reason == "incomplete" else "done"
                view.model = event.model or view.model
                view.finish_reason, view.usage = event.finish_reason, event.usage
                view.ttft_ms, view.duration_ms = event.ttft_ms, event.duration_ms
            case BranchFailed():
                view = self.branch(event.branch)
                view.status, view.error = "failed", event
            case Stats():
                self.stats = event
            case Cancelled() | Failed() | Incomplete():
                self.terminal = event
                unfinished = "cancelled" if isinstance(event, Cancelled) else "failed"
                for view in self.branches.values():
                    if view.status in {"waiting", "streaming"}:
                        view.status = unfinished
            case Done():
                self.terminal = event


def fold(records: Iterable[Record]) -> StreamView:
    view = StreamView()
    for record in records:
        view.apply(record)
    return view


def join_tool_fragments(first: ToolFragment | None, second: ToolFragment) -> ToolFragment:
    """One fragment with the arguments of both; id and name are whichever is set."""
    if first is None:
        return second
    return ToolFragment(
        index=second.index,
        id=first.id or second.id,
        name=first.name or second.name,
        arguments=first.arguments + second.arguments,
    )
