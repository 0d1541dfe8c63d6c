"""Bytes of a text/event-stream to the data of its events, however the bytes are cut.

After the WHATWG's "server-sent events", reduced to what chat completions use: only `data` counts;
comments, ids, event names and retry hints are skipped. An event without its blank line at the end
of the stream is not an event. Pure; the bytes are not decoded, so a cut within a character or
within CRLF changes nothing.
"""

from collections.abc import Iterator

BOM = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """One event of the stream is larger than the decoder's limit."""


class SseDecoder:
    """Feed it every read, in order. Holds at most `max_bytes` and one read."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        """The line that is not finished yet."""
        self._parts_bytes = 0
        self._data: list[bytes] = []
        """The data lines of the event that is not finished yet."""
        self._data_bytes = 0
        self._after_cr = False
        """The last line ended in CR: a LF that comes first now belongs to it."""
        self._at_start = True

    def feed(self, read: bytes) -> Iterator[bytes]:
        """The data of every event that is complete now. Raises EventTooLarge."""
        for line in self._lines(read):
            if not line:
                if self._data:
                    yield self._event()
            elif line.startswith(b"data:"):
                self._add(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                self._add(b"")
        if self._parts_bytes + self._data_bytes > self._max_bytes:
            raise EventTooLarge

    def _lines(self, read: bytes) -> list[bytes]:
        """The lines that are complete now; the rest waits in `_parts`."""
        if self._after_cr and read:
            self._after_cr = False
            read = read.removeprefix(b"\n")
        if self._at_start:
            read = self._without_bom(read)
        if not read:
            return []
        lines = read.splitlines()  # of bytes: at LF, CR and CRLF, and nowhere else
        unfinished = b""
        if read[-1] in b"\r\n":
            self._after_cr = read[-1] == 0x0D
        else:
            unfinished = lines.pop()
        if lines and self._parts:
            self._parts.append(lines[0])
            lines[0] = b"".join(self._parts)
            self._parts.clear()
            self._parts_bytes = 0
        if unfinished:
            self._parts.append(unfinished)
            self._parts_bytes += len(unfinished)
        return lines

    def _add(self, data: bytes) -> None:
        self._data.append(data)
        self._data_bytes += len(data) + 1
        if self._data_bytes > self._max_bytes:
            raise EventTooLarge

    def _event(self) -> bytes:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        self._data_bytes = 0
        return data

    def _without_bom(self, read: bytes) -> bytes:
        """The stream's first bytes, once it is clear whether they are a byte order mark."""
        start = b"".join(self._parts) + read
        self._parts.clear()
        if len(start) < len(BOM) and BOM.startswith(start):
            self._parts.append(start)
            return b""
        self._at_start = False
        return start.removeprefix(BOM)
