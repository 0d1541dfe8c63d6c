"""The data folder: one mesh at a time, what it must remember, what others may want to know.

lock         held while a mesh runs; names its process
state.json   ports and passwords of the embedded servers, kept from start to start
mesh.json    while a mesh runs: its URLs and processes, for `braid doctor`, psql and tests
logs/        the output of every child
nats/ redis/ postgres/   the servers' own; nats-1/ to nats-3/ when NATS is a cluster
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from deploy.mesh.errors import MeshError
from deploy.mesh.ports import free_ports, is_free

PASSWORDS: Final = ("nats", "redis", "postgres")


class DataDir:
    """An open data folder. Use it as a context: leaving it lets the next mesh in."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: IO[str] | None = None

    def __enter__(self) -> DataDir:
        """Raises MeshError when the folder cannot be written or another mesh runs there."""
        try:
            # Root's PostgreSQL runs as another user, who must be able to pass.
            mode = 0o711 if os.geteuid() == 0 else 0o700
            self.path.mkdir(mode=mode, parents=True, exist_ok=True)
            self.logs_dir.mkdir(mode=0o700, exist_ok=True)
            self._lock = (self.path / "lock").open("a+", encoding="ascii")
        except OSError as error:
            raise MeshError(
                f"the data folder {self.path} cannot be written ({error.strerror}): "
                "choose another (--data-dir or BRAID_DATA_DIR)"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise MeshError(
                f"a mesh already runs on {self.path} (process {holder}): "
                "stop it, or choose another folder (--data-dir or BRAID_DATA_DIR)"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def logs_dir(self) -> Path:
        return self.path / "logs"

    @property
    def mesh_file(self) -> Path:
        return self.path / "mesh.json"

    def passwords(self) -> Mapping[str, str]:
        """The servers' passwords, made up at the first start. Raises MeshError."""
        state = self._state()
        known: dict[str, str] = state.get("passwords", {})
        if "postgres" not in known and (self.path / "postgres" / "PG_VERSION").exists():
            raise MeshError(
                f"{self.path / 'state.json'}, which held the password of the database in "
                f"{self.path / 'postgres'}, is gone: bring it back, or remove that folder, which "
                "loses its data"
            )
        state["passwords"] = {name: known.get(name) or _password() for name in PASSWORDS}
        self._write("state.json", state)
        passwords: dict[str, str] = state["passwords"]
        return passwords

    def ports(self, names: Sequence[str]) -> Mapping[str, int]:
        """A free port for each name: the same as last time, unless somebody has taken it."""
        state = self._state()
        known: dict[str, int] = state.get("ports", {})
        fresh = dict(zip(names, free_ports(len(names)), strict=True))
        for name in names:
            if name in known and is_free(known[name]):
                fresh[name] = known[name]
        state["ports"] = known | fresh
        self._write("state.json", state)
        return fresh

    def publish(self, facts: Mapping[str, Any]) -> None:
        self._write("mesh.json", facts)

    def withdraw(self) -> None:
        self.mesh_file.unlink(missing_ok=True)

    def _state(self) -> dict[str, Any]:
        path = self.path / "state.json"
        try:
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise MeshError(f"{path} cannot be read ({error}): remove it or the folder") from None
        return state

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a file at once, readable by us alone: it holds passwords."""
        path = self.path / name
        draft = path.with_name(f".{name}.new")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)


def read_mesh(data_dir: Path) -> dict[str, Any]:
    """What the mesh that runs on this folder says about itself; empty when none does."""
    try:
        facts: dict[str, Any] = json.loads((data_dir / "mesh.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts


def _password() -> str:
    return secrets.token_urlsafe(24)
