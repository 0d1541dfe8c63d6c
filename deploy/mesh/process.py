"""One child process: started so that it cannot outlive us, stopped within a deadline."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

PR_SET_PDEATHSIG: Final = 1
POLL_S: Final = 0.02

Process = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and how it wants to be stopped."""

    argv: tuple[str, ...]
    environ: Mapping[str, str] | None = None
    """None: ours."""
    cwd: Path | None = None
    uid: int | None = None
    gid: int | None = None
    stop_signal: signal.Signals = field(default=signal.SIGTERM)


def spawn(command: Command, output: IO[bytes] | int) -> Process:
    """Start it, in a session of its own.

    A terminal's Ctrl-C reaches only us, so we decide the order in which children stop. On Linux
    the kernel sends them their stop signal when the calling *thread* dies, even by SIGKILL: call
    this from a thread that lives as long as the child should.
    """
    return subprocess.Popen(
        command.argv,
        env=command.environ,
        cwd=command.cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=command.uid,
        group=command.gid,
        extra_groups=None if command.uid is None else [],
        # Nothing but a system call happens between fork and exec: safe beside threads.
        preexec_fn=_die_with_parent(command.stop_signal),  # noqa: PLW1509
    )


def stop(process: Process, stop_signal: signal.Signals, deadline_s: float) -> bool:
    """Stop it and whatever it started; blocks. False when it had to be killed."""
    if process.poll() is not None:
        return True
    tell(process, stop_signal)
    ends = time.monotonic() + deadline_s
    while not _has_exited(process):
        if time.monotonic() > ends:
            kill(process)
            return False
        time.sleep(POLL_S)
    kill(process)
    return True


def tell(process: Process, number: signal.Signals) -> None:
    """Send it a signal. Unlike Popen's own way this never reaps, which is left to `kill`."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def kill(process: Process) -> None:
    """SIGKILL the whole group, then reap. A zombie leader still keeps its group id reserved."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def exited(process: Process) -> None:
    """Wait until it has exited, without reaping it."""
    if process.returncode is not None:
        return
    if not hasattr(os, "pidfd_open"):
        while not _has_exited(process):  # noqa: ASYNC110 - without pidfd nobody sets an event
            await asyncio.sleep(5 * POLL_S)
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(descriptor, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _has_exited(process: Process) -> bool:
    if process.returncode is not None or not hasattr(os, "waitid"):
        return process.poll() is not None
    try:
        # WNOWAIT leaves the zombie, and with it the group id, for `kill`.
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _die_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        prctl(PR_SET_PDEATHSIG, int(death_signal))
        # The parent may have died before the request stood.
        if os.getppid() != parent:
            os._exit(1)

    return before_exec
