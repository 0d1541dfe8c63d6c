"""Logs of children are complete in files of bounded size; a stuck terminal stops nobody."""

import io
import os
import threading
from pathlib import Path

import pytest

from deploy.mesh.logs import MAX_WAITING_LINES, RotatingFile, Terminal, pump


def test_a_full_file_moves_aside_and_only_one_old_one_is_kept(tmp_path: Path) -> None:
    log = RotatingFile(tmp_path / "x.log", max_bytes=10)
    for number in range(5):
        log.write(b"line %d\n" % number)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1"]
    assert (tmp_path / "x.log").read_text() == "line 4\n"
    assert (tmp_path / "x.log.1").read_text() == "line 3\n"


def test_a_log_goes_on_where_the_last_start_ended(tmp_path: Path) -> None:
    for word in (b"one\n", b"two\n"):
        log = RotatingFile(tmp_path / "x.log")
        log.write(word)
        log.close()
    assert (tmp_path / "x.log").read_text() == "one\ntwo\n"


def test_logs_are_for_their_owner_only(tmp_path: Path) -> None:
    log = RotatingFile(tmp_path / "x.log")
    log.write(b"one\n")
    log.close()
    assert (tmp_path / "x.log").stat().st_mode & 0o777 == 0o600


def test_a_disk_that_refuses_costs_lines_but_not_the_child(tmp_path: Path) -> None:
    """A pump that died would leave the child blocked on a full pipe."""
    log = RotatingFile(tmp_path / "not-there" / "x.log")
    log.write(b"lost\n")
    (tmp_path / "not-there").mkdir()
    log.write(b"kept\n")
    log.close()
    assert (tmp_path / "not-there" / "x.log").read_text() == "kept\n"


class Stuck(io.BytesIO):
    """Like a terminal after Ctrl-S: a write returns only once it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go = threading.Event()

    def write(self, line: object, /) -> int:
        self.entered.set()
        self.go.wait(30)
        return super().write(line)  # type: ignore[arg-type]  # bytes, but typeshed says Buffer


def test_a_terminal_that_does_not_read_loses_lines_that_are_counted() -> None:
    output = Stuck()
    terminal = Terminal(output)
    terminal.print("first")
    assert output.entered.wait(10)
    for _ in range(MAX_WAITING_LINES + 5):
        terminal.print("more")
    assert terminal.dropped == 5
    output.go.set()
    terminal.close(deadline_s=10)
    assert b"... 5 lines not shown" in output.getvalue()


def test_a_terminal_that_went_away_is_not_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as output:
        terminal = Terminal(output)
        terminal.print("nobody reads this")
        terminal.close()


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_every_line_arrives_and_ends_even_when_the_child_died_within_one(end: bytes) -> None:
    class Lines(list[bytes]):
        def write(self, line: bytes) -> None:
            self.append(line)

    lines = Lines()
    pump(io.BytesIO(b"one\ntwo" + end), [lines]).join(10)
    assert lines == [b"one\n", b"two\n"]
