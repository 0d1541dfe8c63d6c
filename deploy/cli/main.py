"""The command `braid`. Each command is a module beside this one with a click `command` in it."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Final

import click

from deploy.mesh.errors import MeshError
from shared.bus.connection import BusError
from shared.settings import SettingsError

COMMANDS: Final = ("ask", "config", "doctor", "migrate", "run", "up", "version")


class Commands(click.Group):
    """Imports a command's module when it is asked for, so that none pays for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"deploy.cli.{cmd_name}").command
        return command


@click.command(cls=Commands)
def cli() -> None:
    """Braidstream: LLM output as one ordered, logged, resumable stream."""


def main() -> None:
    """Run one command. What the user can mend is one message on stderr and exit code 2."""
    try:
        code = cli(prog_name="braid", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = 2
    except (SettingsError, MeshError, BusError) as error:
        for line in str(error).splitlines():
            click.echo(f"braid: {line}", err=True)
        code = 2
    except click.Abort:
        code = 130
    except BrokenPipeError:
        # As in `braid config | head`; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
