"""Plays a plan on a connection: the only place that waits, writes and looks at the clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable

from aiohttp import web

from services.simulator.chunks import KEEPALIVE
from services.simulator.journal import End, Entry, Journal
from services.simulator.steps import Hang, Head, Plan, Reset, Send

_JOINED_BYTES = 32 * 1024
_FLUSH_S = 1.0


class Player:
    """Plays any number of plans at once. `drain` ends them all within its deadline."""

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.monotonic) -> None:
        self._journal = journal
        self._clock = clock
        self._draining = asyncio.Event()
        self._playing: set[_Playing] = set()
        self._changed = asyncio.Event()

    async def play(self, request: web.Request, entry: Entry, plan: Plan) -> web.StreamResponse:
        """Answers the request and closes its journal entry.

        Cancelled when the client disconnects (handler cancellation is on); a write to a gone
        client raises ConnectionError. Both are journaled as the client's leaving and passed on.
        """
        playing = _Playing(request, entry, self._journal, self._draining, self._clock)
        self._playing.add(playing)
        try:
            return await playing.run(plan)
        except (asyncio.CancelledError, ConnectionError):
            self._journal.close(entry, "client_closed", self._clock())
            raise
        finally:
            self._playing.discard(playing)
            self._changed.set()

    async def drain(self, deadline_s: float) -> None:
        """Silent streams end at once, running ones may finish; at the deadline their
        connections are aborted. New requests are the caller's to refuse."""
        self._draining.set()
        deadline = self._clock() + deadline_s
        while self._playing and (left_s := deadline - self._clock()) > 0:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
        for playing in tuple(self._playing):
            playing.abort("drained")


class _Playing:
    """One plan on one connection."""

    def __init__(
        self,
        request: web.Request,
        entry: Entry,
        journal: Journal,
        draining: asyncio.Event,
        clock: Callable[[], float],
    ) -> None:
        self._request = request
        self._entry = entry
        self._journal = journal
        self._draining = draining
        self._clock = clock
        self._response = web.StreamResponse()
        self._ready: list[bytes] = []
        self._ready_bytes = 0
        self._ready_tokens = 0

    async def run(self, plan: Plan) -> web.StreamResponse:
        reached_s = 0.0
        for step in plan:
            if isinstance(step, Send):
                if step.due_s != reached_s:
                    await self._flush()
                    await self._wait_until(step.due_s)
                    reached_s = step.due_s
                self._ready.append(step.data)
                self._ready_bytes += len(step.data)
                self._ready_tokens += step.tokens
                if self._ready_bytes >= _JOINED_BYTES:
                    await self._flush()
                    await asyncio.sleep(0)  # flat out, one stream must not starve the others
            elif isinstance(step, Head):
                if step.due_s != reached_s:
                    await self._wait_until(step.due_s)
                    reached_s = step.due_s
                await self._open(step)
            else:
                await self._flush()
                if isinstance(step, Reset):
                    await self._reset("fault")
                elif not await self._hang(step):
                    await self._reset("drained")
        await self._flush()
        self._journal.close(self._entry, "finished", self._clock())
        await self._response.write_eof()
        return self._response

    def abort(self, ended: End) -> None:
        """Ends the connection with a TCP reset; the handler is cancelled by its loss."""
        self._journal.close(self._entry, ended, self._clock())
        transport = self._request.transport
        if transport is None:
            return
        own = transport.get_extra_info("socket")
        if own is not None:
            # A copy of the descriptor, because uvloop's stand-in has no setsockopt. Without
            # linger 0 the client would see an ordinary end of the body.
            with socket.socket(fileno=os.dup(own.fileno())) as copy:
                copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    async def _open(self, head: Head) -> None:
        response = self._response
        response.set_status(head.status)
        response.headers["Content-Type"] = head.media
        response.headers["X-Request-Id"] = self._entry.id
        for name, value in head.headers:
            response.headers[name] = value
        if head.size is not None:
            response.content_length = head.size
        self._entry.status = head.status
        await response.prepare(self._request)

    async def _flush(self) -> None:
        if not self._ready:
            return
        data = self._ready[0] if len(self._ready) == 1 else b"".join(self._ready)
        tokens = self._ready_tokens
        self._ready.clear()
        self._ready_bytes = self._ready_tokens = 0
        await self._response.write(data)
        if tokens:
            self._journal.sent(self._entry, tokens, self._clock())

    async def _wait_until(self, due_s: float) -> None:
        """Yields to the other requests even when the time has passed."""
        await asyncio.sleep(max(self._entry.started_s + due_s - self._clock(), 0.0))

    async def _hang(self, step: Hang) -> bool:
        """Whether the silence ran its course; False: the server drains."""
        end_s = None if step.for_s is None else self._clock() + step.for_s
        while True:
            left_s = None if end_s is None else end_s - self._clock()
            if left_s is not None and left_s <= 0:
                return True
            waits = [wait for wait in (left_s, step.keepalive_s) if wait is not None]
            wait_s = min(waits, default=None)
            try:
                async with asyncio.timeout(wait_s):
                    await self._draining.wait()
                return False
            except TimeoutError:
                if wait_s == step.keepalive_s:
                    await self._response.write(KEEPALIVE)

    async def _reset(self, ended: End) -> None:
        await self._written_out()
        self.abort(ended)
        await asyncio.Event().wait()  # the lost connection cancels this handler

    async def _written_out(self) -> None:
        """Waits, a second at most, until the kernel has what was written: an abort throws away
        the rest, and the client would miss tokens it was meant to get."""
        end_s = self._clock() + _FLUSH_S
        transport = self._request.transport
        while transport is not None and self._clock() < end_s:
            await asyncio.sleep(0)
            if transport.is_closing() or not transport.get_write_buffer_size():
                return
            await asyncio.sleep(0.001)
