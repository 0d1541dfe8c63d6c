"""Options that are settings: the same names, meanings and checks as the variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from shared.settings import Settings, variable


def settings_options(*keys: str) -> Callable[[Any], Any]:
    """Adds `--some-key VALUE` for each key; one that is not given arrives as None."""

    def add(function: Any) -> Any:
        for key in reversed(keys):
            description = Settings.model_fields[key].description
            function = click.option(
                "--" + key.replace("_", "-"), key, help=f"{description} [{variable(key)}]"
            )(function)
        return function

    return add
