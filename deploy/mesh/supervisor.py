"""Keeps children running: starts them, starts them again with backoff, stops them in order."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import structlog

from deploy.mesh.backoff import Backoff
from deploy.mesh.logs import RotatingFile, Sink, Terminal, pump
from deploy.mesh.process import Command, Process, exited, kill, spawn, tell

log = structlog.get_logger()

# What a stopping child gets once a hurried operator has asked again.
HURRIED_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Spec:
    """One child to keep running."""

    name: str
    command: Command
    stage: int
    """Children of a lower stage have exited before those of a higher one are told to."""
    deadline_s: float
    """How long it may take to stop before it is killed."""
    is_shown: bool = True
    """Whether its output is shown besides going to its file."""


@dataclass(slots=True)
class Child:
    spec: Spec
    backoff: Backoff
    output: RotatingFile
    process: Process | None = None
    started_at: float = 0.0
    exits: int = 0
    is_stopping: bool = False
    last_code: int | None = None
    keeper: asyncio.Task[None] | None = field(default=None, repr=False)
    pump: threading.Thread | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        return None if self.process is None else self.process.pid


class Supervisor:
    """Owns every child from `start` until `drain` has returned."""

    def __init__(
        self,
        logs_dir: Path,
        terminal: Terminal,
        *,
        on_change: Callable[[], None] = lambda: None,
        random: Random | None = None,
        backoff: Callable[[Random], Backoff] = Backoff,
    ) -> None:
        self._logs_dir = logs_dir
        self._terminal = terminal
        self._on_change = on_change
        self._random = random or Random()  # noqa: S311 - spreads restarts, guards nothing
        self._backoff = backoff
        self._children: dict[str, Child] = {}
        self._hurried = asyncio.Event()

    @property
    def children(self) -> tuple[Child, ...]:
        return tuple(self._children.values())

    def start(self, spec: Spec) -> Child:
        """Start a child and keep it running. Raises OSError when its program cannot be run."""
        output = RotatingFile(self._logs_dir / f"{spec.name}.log")
        child = Child(spec, self._backoff(self._random), output)
        self._children[spec.name] = child
        try:
            self._spawn(child)
        except OSError:
            del self._children[spec.name]
            raise
        child.keeper = asyncio.create_task(self._keep(child), name=f"keep {spec.name}")
        return child

    def hurry(self) -> None:
        """Shorten every stopping child's deadline."""
        self._hurried.set()

    async def drain(self) -> bool:
        """Stop all children, stage by stage. True when none had to be killed."""
        is_clean = True
        for child in self._children.values():
            child.is_stopping = True  # one that falls from here on stays down
        for stage in sorted({child.spec.stage for child in self._children.values()}):
            members = [child for child in self._children.values() if child.spec.stage == stage]
            is_clean &= all(await asyncio.gather(*(self._stop(child) for child in members)))
        return is_clean

    def kill_all(self) -> None:
        """The last resort: nothing is left behind."""
        for child in self._children.values():
            if child.process is not None:
                kill(child.process)

    def _spawn(self, child: Child) -> None:
        process = spawn(child.spec.command, subprocess.PIPE)
        assert process.stdout is not None
        sinks: list[Sink] = [child.output]
        if child.spec.is_shown:
            sinks.append(self._terminal)
        child.pump = pump(process.stdout, sinks)
        child.process = process
        child.started_at = time.monotonic()
        self._on_change()

    async def _keep(self, child: Child) -> None:
        while True:
            if child.process is not None:
                await self._await_exit(child, child.process)
            if child.is_stopping:
                return
            delay_s = child.backoff.delay_s(time.monotonic() - child.started_at)
            log.warning(
                "child.exited",
                name=child.spec.name,
                code=child.last_code,
                signal=_signal_name(child.last_code),
                delay_s=round(delay_s, 3),
            )
            await asyncio.sleep(delay_s)
            try:
                self._spawn(child)
            except OSError as error:
                child.started_at = time.monotonic()
                log.warning("child.unstartable", name=child.spec.name, error=str(error))
            else:
                log.info("child.restarted", name=child.spec.name, pid=child.pid)

    async def _await_exit(self, child: Child, process: Process) -> None:
        await exited(process)
        kill(process)  # reaps it, and takes along what it had started
        if child.pump is not None:
            await asyncio.to_thread(child.pump.join, 1.0)
        child.exits += 1
        child.last_code = process.returncode
        child.process = None
        self._on_change()

    async def _stop(self, child: Child) -> bool:
        keeper = child.keeper
        assert keeper is not None
        process = child.process
        if process is None:
            keeper.cancel()  # it waits to start the child again
            with suppress(asyncio.CancelledError):
                await keeper
            child.output.close()
            return True
        tell(process, child.spec.command.stop_signal)
        is_clean = await self._is_gone(keeper, child.spec.deadline_s)
        if not is_clean:
            log.warning("child.killed", name=child.spec.name, pid=process.pid)
            kill(process)
            await keeper
        child.output.close()
        log.info("child.stopped", name=child.spec.name, code=child.last_code)
        return is_clean

    async def _is_gone(self, keeper: asyncio.Task[None], deadline_s: float) -> bool:
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            done, _ = await asyncio.wait(
                {keeper, hurried}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
            if keeper not in done and hurried in done:
                done, _ = await asyncio.wait({keeper}, timeout=min(HURRIED_S, deadline_s))
            return keeper in done
        finally:
            hurried.cancel()


def _signal_name(code: int | None) -> str | None:
    """The signal that ended a process, if one did."""
    if code is None or code >= 0:
        return None
    try:
        return signal.Signals(-code).name
    except ValueError:
        return str(-code)
