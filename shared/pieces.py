"""Texts too long for one message, cut into pieces that fit."""

MARGIN_BYTES = 64 * 1024
"""Left of NATS's message limit for headers and for the fields around a text."""


def room_in(max_payload: int) -> int:
    """The largest text one message may carry, in bytes of UTF-8."""
    return max(max_payload - MARGIN_BYTES, max_payload // 2)


def split(text: str, max_bytes: int) -> list[str]:
    """Pieces of at most `max_bytes` (4 or more) in UTF-8, joining to the text; at least one."""
    encoded = text.encode()
    pieces = []
    start = 0
    while len(encoded) - start > max_bytes:
        end = start + max_bytes
        while encoded[end] & 0xC0 == 0x80:  # never cut between the bytes of one character
            end -= 1
        pieces.append(encoded[start:end].decode())
        start = end
    return [*pieces, encoded[start:].decode()]
