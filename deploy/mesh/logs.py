"""Where the output of children goes: a bounded file each, and our own output."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Final, Protocol

MAX_LINE_BYTES: Final = 64 * 1024
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_WAITING_LINES: Final = 8192


class Sink(Protocol):
    def write(self, line: bytes) -> None: ...


class RotatingFile:
    """A log file that moves to `<name>.1` when it is full: at most two of them exist."""

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file: IO[bytes] | None = None

    def write(self, line: bytes) -> None:
        # A full disk costs log lines, not the mesh: a pump that died would block its child.
        with suppress(OSError):
            self._room_for(len(line)).write(line)

    def _room_for(self, size: int) -> IO[bytes]:
        if self._file is not None and 0 < self._file.tell() > self._max_bytes - size:
            self.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
        if self._file is None:
            self.path.touch(mode=0o600)
            self._file = self.path.open("ab", buffering=0)
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Terminal:
    """Our standard output, written by a thread of its own.

    A reader that stops reading (Ctrl-S, a full pipe) must not stop the mesh: beyond
    `MAX_WAITING_LINES` lines are dropped and counted; the files have them all.
    """

    def __init__(self, output: IO[bytes] | None = None) -> None:
        self._output = sys.stdout.buffer if output is None else output
        self._lines: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING_LINES)
        self._thread = threading.Thread(target=self._run, name="terminal", daemon=True)
        self._thread.start()
        self.dropped = 0

    def write(self, line: bytes) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def print(self, text: str) -> None:
        self.write(text.encode() + b"\n")

    def close(self, deadline_s: float = 1.0) -> None:
        """Write what is waiting, but for no longer than the deadline."""
        try:
            self._lines.put(None, timeout=deadline_s)
        except queue.Full:
            return
        self._thread.join(deadline_s)

    def _run(self) -> None:
        reported = 0
        while (line := self._lines.get()) is not None:
            try:
                if self.dropped > reported:
                    count, reported = self.dropped - reported, self.dropped
                    self._output.write(f"... {count} lines not shown\n".encode())
                self._output.write(line)
                if self._lines.empty():
                    self._output.flush()
            except (OSError, ValueError):
                return  # nobody reads any more; the queue fills, and then counts


def pump(source: IO[bytes], sinks: Sequence[Sink]) -> threading.Thread:
    """Copy lines until the end of `source`, in a thread; longer lines arrive in pieces."""

    def run() -> None:
        with source:
            for line in iter(partial(source.readline, MAX_LINE_BYTES), b""):
                for sink in sinks:
                    sink.write(line if line.endswith(b"\n") else line + b"\n")

    thread = threading.Thread(target=run, name="log-pump", daemon=True)
    thread.start()
    return thread
