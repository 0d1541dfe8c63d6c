"""What the supervisor and the tests need to know of an embedded server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from deploy.mesh.errors import MeshError
from deploy.mesh.process import POLL_S, Command, Process, kill, spawn, stop


class Server(Protocol):
    """A server we start ourselves. Its methods block."""

    @property
    def name(self) -> str: ...

    @property
    def url(self) -> str:
        """How clients reach it; holds a password."""
        ...

    def prepare(self) -> None:
        """Make its folder and files, keeping what is there. Raises MeshError."""
        ...

    def command(self) -> Command: ...

    def probe(self) -> bool:
        """Whether it serves now; answers within about a second."""
        ...


def await_ready(server: Server, process: Process, log: Path, deadline_s: float) -> None:
    """Block until it serves. Raises MeshError with the end of its log when it does not."""
    ends = time.monotonic() + deadline_s
    while not server.probe():
        if process.poll() is not None:
            raise MeshError(f"{server.name} exited with {process.returncode}:\n{tail(log)}")
        if time.monotonic() > ends:
            raise MeshError(f"{server.name} does not serve after {deadline_s:g} s:\n{tail(log)}")
        time.sleep(POLL_S)


class Running:
    """A server in use as `with Running(server, log):`, for tests and tools."""

    def __init__(self, server: Server, log: Path, deadline_s: float = 30) -> None:
        self._server = server
        self._log = log
        self._deadline_s = deadline_s
        self._process: Process | None = None

    def __enter__(self) -> Server:
        self._server.prepare()
        with self._log.open("ab") as output:
            self._process = spawn(self._server.command(), output)
        try:
            await_ready(self._server, self._process, self._log, self._deadline_s)
        except BaseException:
            kill(self._process)
            raise
        return self._server

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            stop(self._process, self._server.command().stop_signal, deadline_s=10)


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, indented; the place to look when there is nothing."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except OSError:
        text = []
    return "\n".join(f"  {line}" for line in text) or f"  (nothing in {log})"
