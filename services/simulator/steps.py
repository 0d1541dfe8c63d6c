"""What the server does for one request, as data: a plan is a row of these steps.

A plan that ends without `Reset` ends the body cleanly.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct


class Head(Struct, frozen=True):
    """Status line and headers. `size` is the body's announced length; None: chunked.

    `media` is what is sent as Content-Type, word for word.
    """

    status: int
    media: str
    headers: tuple[tuple[str, str], ...] = ()
    size: int | None = None
    due_s: float = 0.0


class Send(Struct, frozen=True, gc=False):
    """Bytes of the body, `due_s` after the request's start, carrying this many tokens."""

    data: bytes
    due_s: float = 0.0
    tokens: int = 0


class Hang(Struct, frozen=True):
    """Keeps the connection open and sends nothing but, if asked, keep-alive comments.

    None: until the client leaves or the server drains.
    """

    for_s: float | None
    keepalive_s: float | None = None


class Reset(Struct, frozen=True):
    """Ends the connection with a TCP reset, after what was sent has left."""


Step = Head | Send | Hang | Reset
Plan = Iterator[Step]
