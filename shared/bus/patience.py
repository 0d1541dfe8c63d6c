"""Trying again while NATS restarts, or a cluster elects a leader: five to nine seconds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.bus.connection import BusError

T = TypeVar("T")


class Refused(BusError):
    """NATS has said no, and would say so again."""


ELECTION_S = 15.0
"""How long whoever needs a leader is willing to wait for one."""


async def patiently(
    attempt: Callable[[], Awaitable[T]], patience_s: float, *, first_s: float = 0.05
) -> T:
    """The first answer of an attempt that doesn't raise BusError; pauses double, up to a second.

    Raises Refused at once, and the last attempt's BusError when another one would begin after
    `patience_s`.
    """
    clock = asyncio.get_running_loop().time
    give_up_at = clock() + patience_s
    pause_s = first_s
    while True:
        try:
            return await attempt()
        except Refused:
            raise
        except BusError:
            if clock() + pause_s > give_up_at:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 1.0)
