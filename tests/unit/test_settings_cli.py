"""The command line shows what is in force, and answers mistakes in one line."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from deploy.cli.main import COMMANDS, cli, main
from deploy.cli.options import settings_options
from shared.settings import Settings


@pytest.fixture
def braid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> "Braid":
    monkeypatch.chdir(tmp_path)
    return Braid(monkeypatch, capsys)


class Braid:
    """Runs one command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """The exit code, and what it wrote to stdout and stderr."""
        self._monkeypatch.setattr(sys, "argv", ["braid", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        written = self._capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), written.out, written.err


def test_config_says_what_is_in_force_and_why(
    braid: Braid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAID_WORKERS", "3")
    code, out, _ = braid("config", "--port", "9000")
    assert code == 0
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert lines["workers"] == ["3", "BRAID_WORKERS"]
    assert lines["port"] == ["9000", "option"]
    assert lines["mergers"] == ["1", "default"]
    assert set(lines) == set(Settings.model_fields)


def test_config_masks_secrets(braid: Braid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    monkeypatch.setenv("BRAID_POSTGRES_URL", "postgresql://me:hunter2@db/x")
    for arguments in (["config"], ["config", "--json"]):
        code, out, _ = braid(*arguments)
        assert code == 0
        assert "hunter2" not in out
        assert "postgresql://me:***@db/x" in out


def test_config_as_json_describes_every_key(braid: Braid) -> None:
    _, out, _ = braid("config", "--json")
    facts = json.loads(out)
    assert facts["port"] == {
        "value": 8080,
        "source": "default",
        "description": "TCP port of the edge; 0 takes a free one.",
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["up", "--port", "http"], "braid: --port: 'http' is refused"),
        (["up", "--workers", "0"], "braid: --workers: '0' is refused"),
        (["up", "--speed", "3"], "No such option"),
        (["run", "marger"], "'marger' is not one of"),
        (["fly"], "No such command"),
    ],
)
def test_a_mistake_is_answered_on_stderr_with_exit_code_2(
    braid: Braid, arguments: list[str], complaint: str
) -> None:
    code, out, err = braid(*arguments)
    assert code == 2
    assert complaint in err
    assert out == ""


def test_every_command_has_help() -> None:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help, name
    assert cli.get_command(context, "fly") is None


def test_an_option_of_a_setting_names_its_variable() -> None:
    @click.command
    @settings_options("data_dir")
    def command(data_dir: str | None) -> None:
        click.echo(data_dir)

    assert "[BRAID_DATA_DIR]" in command.get_help(click.Context(command))


def test_a_reader_that_stops_early_is_no_error() -> None:
    program = f"{sys.executable} -P -m deploy.cli.main config --json"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {program} | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
