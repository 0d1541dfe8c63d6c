"""What `braid up` runs besides the servers: one spec per process, from the settings. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

from deploy.mesh.process import Command
from deploy.mesh.supervisor import Spec
from shared.settings import ENV_PREFIX, Settings

# The way of a request, so that whoever hands work on stops before whoever takes it. The simulator
# and the servers outlive the services that use them.
STAGES: Final[Mapping[str, int]] = {
    "edge": 0,
    "context": 1,
    "worker": 2,
    "merger": 3,
    "persistence": 4,
    "simulator": 5,
    "server": 6,
}
COUNT_KEYS: Final[Mapping[str, str]] = {
    "edge": "edges",
    "context": "contexts",
    "worker": "workers",
    "merger": "mergers",
    "persistence": "persistences",
}
SERVER_DEADLINE_S: Final = 15.0
SIMULATOR_DEADLINE_S: Final = 5.0
# A service keeps its own drain deadline; this is for its last words.
GRACE_S: Final = 2.0


def braid(*arguments: str) -> tuple[str, ...]:
    """The command line of `braid` itself. -P: a folder named `shared` where the user happens to
    be must not hide ours."""
    return (sys.executable, "-P", "-m", "deploy.cli.main", *arguments)


def service_specs(settings: Settings, environ: Mapping[str, str]) -> list[Spec]:
    """Every service process, in the order they are started. `environ` is what they inherit."""
    names = [
        (service, f"{service}-{number}")
        for service, key in reversed([*COUNT_KEYS.items()])
        for number in range(1, getattr(settings, key) + 1)
    ]
    return [
        Spec(
            name,
            Command(braid("run", service), child_environ(settings, environ, name)),
            stage=STAGES[service],
            deadline_s=settings.drain_deadline_s + GRACE_S,
        )
        for service, name in names
    ]


def simulator_spec(settings: Settings, environ: Mapping[str, str], port: int) -> Spec:
    return Spec(
        "simulator",
        Command(
            (sys.executable, "-P", "-m", "services.simulator", "--any-model", "--port", str(port)),
            child_environ(settings, environ, "simulator"),
        ),
        stage=STAGES["simulator"],
        deadline_s=SIMULATOR_DEADLINE_S,
    )


def child_environ(settings: Settings, environ: Mapping[str, str], name: str) -> dict[str, str]:
    """The settings in force as variables, over what else there is."""
    kept = {key: value for key, value in environ.items() if not key.startswith(ENV_PREFIX)}
    return kept | settings.model_copy(update={"service_id": name}).to_environ()
