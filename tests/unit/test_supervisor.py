"""The supervisor keeps children running, and leaves none behind."""

import asyncio
import io
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from random import Random

import psutil
import pytest
from structlog.testing import capture_logs

from deploy.mesh.backoff import Backoff
from deploy.mesh.logs import Terminal
from deploy.mesh.process import Command
from deploy.mesh.supervisor import Spec, Supervisor

OBEDIENT = """
import signal, sys, time
def end(*_):
    print("{name} ends", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("{name} runs", flush=True)
while True: time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("{name} runs", flush=True)
while True: time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
while True: time.sleep(60)
"""


def spec(name: str, code: str = OBEDIENT, *, stage: int = 0, deadline_s: float = 10) -> Spec:
    program = (sys.executable, "-c", code.replace("{name}", name))
    return Spec(name, Command(program), stage=stage, deadline_s=deadline_s)


async def until(condition: Callable[[], object], deadline_s: float = 20) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def shown() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture
async def supervisor(tmp_path: Path, shown: io.BytesIO) -> AsyncIterator[Supervisor]:
    terminal = Terminal(shown)
    quick = partial(Backoff, first_s=0.01)
    supervisor = Supervisor(tmp_path, terminal, random=Random(7), backoff=quick)
    yield supervisor
    supervisor.hurry()
    await supervisor.drain()
    terminal.close()


async def test_output_of_a_child_goes_to_its_file_and_is_shown(
    supervisor: Supervisor, tmp_path: Path, shown: io.BytesIO
) -> None:
    supervisor.start(spec("one"))
    await until(lambda: b"one runs" in shown.getvalue())
    assert (tmp_path / "one.log").read_text() == "one runs\n"


async def test_a_killed_child_is_started_again_and_the_log_says_so(
    supervisor: Supervisor,
) -> None:
    with capture_logs() as logs:
        child = supervisor.start(spec("one"))
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.pid not in {first, None})
    assert [entry["event"] for entry in logs] == ["child.exited", "child.restarted"]
    assert logs[0]["name"] == "one"
    assert logs[0]["code"] == -9
    assert logs[0]["signal"] == "SIGKILL"
    assert logs[0]["delay_s"] > 0


async def test_a_child_that_always_fails_is_tried_at_growing_intervals(
    supervisor: Supervisor,
) -> None:
    with capture_logs() as logs:
        child = supervisor.start(spec("one", "raise SystemExit(3)"))
        await until(lambda: child.exits >= 4)
    delays = [entry["delay_s"] for entry in logs if entry["event"] == "child.exited"]
    assert delays[3] > delays[0]
    assert child.last_code == 3


async def test_draining_waits_for_a_stage_before_it_tells_the_next(
    supervisor: Supervisor, shown: io.BytesIO
) -> None:
    """An edge must be gone before the merger it reads from."""
    names = ["c", "a", "b"]
    for name in names:
        supervisor.start(spec(name, stage="abc".index(name)))
    await until(lambda: all(f"{name} runs".encode() in shown.getvalue() for name in names))
    assert await supervisor.drain()
    ends = [line for line in shown.getvalue().decode().split("\n") if line.endswith("ends")]
    assert ends == ["a ends", "b ends", "c ends"]


async def test_a_child_that_ignores_its_deadline_is_killed_and_named(
    supervisor: Supervisor, shown: io.BytesIO
) -> None:
    child = supervisor.start(spec("deaf", STUBBORN, deadline_s=0.1))
    await until(lambda: b"deaf runs" in shown.getvalue())
    pid = child.pid
    with capture_logs() as logs:
        assert not await supervisor.drain()
    assert logs[0]["event"] == "child.killed"
    assert logs[0]["name"] == "deaf"
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_hurried_operator_does_not_wait_for_the_deadline(
    supervisor: Supervisor, shown: io.BytesIO
) -> None:
    supervisor.start(spec("deaf", STUBBORN, deadline_s=3600))
    await until(lambda: b"deaf runs" in shown.getvalue())
    began = time.monotonic()
    draining = asyncio.create_task(supervisor.drain())
    supervisor.hurry()
    assert not await draining
    assert time.monotonic() - began < 30


async def test_what_a_child_had_started_goes_with_it(
    supervisor: Supervisor, shown: io.BytesIO
) -> None:
    """A wrapper that dies without a word to its own child must not leave it behind."""
    child = supervisor.start(spec("parent", PARENT))
    await until(lambda: shown.getvalue().endswith(b"\n"))
    grandchild = psutil.Process(int(shown.getvalue()))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    await until(lambda: not _is_alive(grandchild))


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def test_a_child_that_waits_for_its_next_start_stays_down_when_draining(
    tmp_path: Path, shown: io.BytesIO
) -> None:
    terminal = Terminal(shown)
    slow = partial(Backoff, first_s=3600, longest_s=3600)
    supervisor = Supervisor(tmp_path, terminal, backoff=slow)
    child = supervisor.start(spec("one", "raise SystemExit(3)"))
    await until(lambda: child.exits)
    assert await supervisor.drain()
    assert child.exits == 1
    terminal.close()


async def test_a_program_that_is_not_there_is_refused_at_once(supervisor: Supervisor) -> None:
    missing = Spec("none", Command(("/nowhere/none",)), stage=0, deadline_s=1)
    with pytest.raises(FileNotFoundError):
        supervisor.start(missing)
    assert supervisor.children == ()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_a_killed_supervisor_takes_its_children_along(tmp_path: Path) -> None:
    """Else the next `braid up` would meet servers that still hold its data folder."""
    code = """
import asyncio, signal, sys
from pathlib import Path
from deploy.mesh.logs import Terminal
from deploy.mesh.process import Command
from deploy.mesh.supervisor import Spec, Supervisor
async def main():
    supervisor = Supervisor(Path(sys.argv[1]), Terminal())
    program = (sys.executable, "-c", "import time; time.sleep(600)")
    child = supervisor.start(Spec("one", Command(program), stage=0, deadline_s=1))
    print(child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with psutil.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=-1, text=True
    ) as supervisor:
        child = psutil.Process(int(supervisor.stdout.readline()))
        supervisor.kill()
    psutil.wait_procs([child], timeout=20)
    assert not _is_alive(child)


def test_delays_double_up_to_a_limit_and_a_long_life_forgets_them() -> None:
    backoff = Backoff(Random(1), first_s=1, longest_s=8, stable_s=30, jitter=0)
    assert [backoff.delay_s(0) for _ in range(5)] == [1, 2, 4, 8, 8]
    assert backoff.delay_s(lived_s=31) == 1


def test_delays_are_spread_so_that_children_do_not_get_up_all_at_once() -> None:
    delays = {Backoff(Random(seed), first_s=1).delay_s(0) for seed in range(20)}
    assert len(delays) == 20
    assert all(0.75 <= delay <= 1.25 for delay in delays)
