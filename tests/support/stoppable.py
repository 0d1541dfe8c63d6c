"""A server of one test's own, to be stopped, started again, frozen and thawed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from deploy.mesh.process import Process, spawn, stop
from deploy.mesh.server import Server, await_ready

READY_S = 30


class Stoppable:
    """Its methods block."""

    def __init__(self, server: Server, log: Path) -> None:
        self.url = server.url
        self._server = server
        self._log = log
        self._process: Process | None = None

    def start(self) -> None:
        self._server.prepare()
        with self._log.open("ab") as output:
            self._process = spawn(self._server.command(), output)
        await_ready(self._server, self._process, self._log, READY_S)

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process, self._server.command().stop_signal, deadline_s=10)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every process of the server holds still: connections stay open and silent."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        # Each of PostgreSQL's processes leads a session of its own: a group can't be signalled.
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@contextmanager
def stoppable(server: Server, log: Path) -> Iterator[Stoppable]:
    """Started, and at the end stopped whatever has happened to it."""
    own = Stoppable(server, log)
    try:
        own.start()
        yield own
    finally:
        own.stop()
