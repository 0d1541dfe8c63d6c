"""Identifiers that travel in subjects, URLs and keys: base62, so never a dot, space or wildcard."""

import re
import secrets
import zlib

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SID_LENGTH = 22
"""22 base62 characters carry 130 bits: unguessable, and no coordination is needed to make one."""

_SID = re.compile(rf"[0-9A-Za-z]{{{SID_LENGTH}}}")
_TOKEN = re.compile(r"[0-9A-Za-z_-]{1,64}")


def new_sid() -> str:
    """A random stream id."""
    return _random(SID_LENGTH)


def new_instance_id(service: str) -> str:
    """A name for one running process of a service, unique in the mesh."""
    return f"{service}-{_random(8)}"


def is_sid(value: str) -> bool:
    """True for exactly 22 base62 characters."""
    return _SID.fullmatch(value) is not None


def is_token(value: str) -> bool:
    """True for what may stand between two dots of a subject: 1 to 64 of A-Z a-z 0-9 _ -."""
    return _TOKEN.fullmatch(value) is not None


def shard_of(sid: str, shards: int) -> int:
    """The event log shard of a stream: CRC-32 of the sid modulo `shards`, in every release."""
    return zlib.crc32(sid.encode()) % shards


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
