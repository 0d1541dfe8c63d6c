"""As whom PostgreSQL runs: it refuses root.

Started as an ordinary user it runs as that user. Started as root it runs as the system user
`pgserver`. When that user cannot reach the programs or the data, because a parent folder such as
/root is closed to others, it is lent the capability to pass closed folders: nobody's permissions
are changed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.mesh.errors import MeshError

SYSTEM_USER: Final = "pgserver"
CAPABILITIES: Final = {"dac_read_search": 2, "dac_override": 1}  # name -> bit, the lesser first
SETPCAP_BIT: Final = 8


@dataclass(frozen=True, slots=True)
class Identity:
    """How to start a program as somebody: a prefix of its arguments, or user and group ids."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None
    owner: tuple[int, int] | None = None
    """Who its data must belong to; None: whoever makes it."""


def unprivileged(programs: Sequence[Path], folder: Path, death_signal: str) -> Identity:
    """An identity PostgreSQL accepts, that can read all `programs` and reach the data `folder`.

    Raises MeshError when there is none.
    """
    if os.geteuid() != 0:
        return Identity()
    entry = _system_user()
    owner = (entry.pw_uid, entry.pw_gid)
    closed = next((path for path in programs if not open_to_others(path)), None)
    if closed is None and not way_is_open(folder):
        closed = folder
    if closed is None:
        return Identity(uid=entry.pw_uid, gid=entry.pw_gid, owner=owner)
    setpriv, capability = shutil.which("setpriv"), _capability()
    if setpriv is None or capability is None:
        raise MeshError(
            f"PostgreSQL refuses to run as root, and {SYSTEM_USER}, as whom it is started, cannot "
            f"reach {closed}: use a data folder and an installation outside of closed folders "
            "(BRAID_DATA_DIR=/var/lib/braidstream), run as an ordinary user, install setpriv "
            "(util-linux), or set BRAID_POSTGRES_URL"
        )
    # setpriv changes the user itself, which clears the death signal asked for before.
    prefix = (
        setpriv,
        f"--reuid={entry.pw_uid}",
        f"--regid={entry.pw_gid}",
        "--clear-groups",
        f"--inh-caps=+{capability}",
        f"--ambient-caps=+{capability}",
        # Else access(2), with which initdb looks for its programs, forgets the capability.
        "--securebits=+no_setuid_fixup",
        f"--pdeathsig={death_signal}",
        "--",
    )
    return Identity(prefix=prefix, owner=owner)


def open_to_others(path: Path) -> bool:
    """Whether others may reach and read it."""
    wanted = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
    return way_is_open(path) and path.stat().st_mode & wanted == wanted


def way_is_open(path: Path) -> bool:
    """Whether others may pass all its parents."""
    return all(
        parent.stat().st_mode & stat.S_IXOTH
        for parent in path.absolute().parents
        if parent.exists()
    )


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    try:
        if useradd is None:
            raise OSError("there is no useradd")
        subprocess.run(
            [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            check=True,
            capture_output=True,
        )
        return pwd.getpwnam(SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise MeshError(
            f"PostgreSQL refuses to run as root, and the user {SYSTEM_USER} could not be made "
            f"({error}): make it by hand, run as an ordinary user, or set BRAID_POSTGRES_URL"
        ) from None


def _capability() -> str | None:
    """The least capability that opens closed folders and that we may pass on, if any."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.exists() else ():
        name, _, value = line.partition(":")
        if name == "CapEff":
            held = int(value, 16)
            if not held >> SETPCAP_BIT & 1:
                return None
            return next((name for name, bit in CAPABILITIES.items() if held >> bit & 1), None)
    return None
