"""A stream means the same however the network cuts it."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.worker.sse_decoder import EventTooLarge, SseDecoder

LIMIT = 1_000_000

FIELDS = b"data:|data: |data|dat| |:|: ping|id: 1|event: x|retry: 5|[DONE]".split(b"|")
NEWLINES = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r"]
ODDITIES = [b"\xef\xbb\xbf", b"\xbf", b"\x0b", b"\x1c", b"\xc2\x85", *map(str.encode, "é😀\u2028")]
pieces = st.sampled_from([*FIELDS, *NEWLINES, *ODDITIES])
streams = st.lists(pieces, max_size=40).map(b"".join)


def decode(*reads: bytes) -> list[bytes]:
    decoder = SseDecoder(LIMIT)
    return [data for read in reads for data in decoder.feed(read)]


def by_the_book(stream: bytes) -> list[bytes]:
    """The standard's parser, slow and literal."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    *lines, _unfinished = re.split(rb"\r\n|\n|\r", stream)
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
    return events


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(streams, st.lists(st.integers(min_value=0), max_size=12))
@example(b"\xef\xbb\xbfdata: a\r\n\r\ndata: b\r\r", [1, 2, 11, 12, 13])
def test_any_cut_gives_the_events_of_the_standard(stream: bytes, places: list[int]) -> None:
    assert decode(*cut(stream, places)) == by_the_book(stream)


@given(streams)
def test_byte_by_byte_gives_the_same_events(stream: bytes) -> None:
    assert decode(*(stream[at : at + 1] for at in range(len(stream)))) == by_the_book(stream)


@given(st.lists(st.text(min_size=1)), st.sampled_from(["\n", "\r", "\r\n"]))
def test_what_was_sent_as_data_arrives_whole(texts: list[str], newline: str) -> None:
    events = [re.sub("[\r\n]", " ", text).encode() for text in texts]
    end = newline.encode()
    stream = b"".join(b"data: " + event + end + end for event in events)
    assert decode(stream) == events


def test_several_data_lines_are_one_event() -> None:
    assert decode(b"data: a\ndata\ndata:  b\n\n") == [b"a\n\n b"]


def test_an_event_without_its_blank_line_is_none() -> None:
    assert decode(b'data: {"a":1}\n') == []


def test_a_byte_order_mark_counts_only_at_the_start() -> None:
    assert decode(b"\xef", b"\xbb", b"\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n") == [b"a"]


@pytest.mark.parametrize("line", [b"x" * 200, b"data: " + b"x" * 200, b": " + b"x" * 200])
def test_a_line_that_never_ends_is_refused_instead_of_kept(line: bytes) -> None:
    decoder = SseDecoder(100)
    with pytest.raises(EventTooLarge):
        list(decoder.feed(line))


def test_many_data_lines_without_an_end_are_refused_as_well() -> None:
    decoder = SseDecoder(100)
    for _ in range(16):
        assert list(decoder.feed(b"data: xxxxx\n")) == []
    with pytest.raises(EventTooLarge):
        list(decoder.feed(b"data: xxxxx\n"))


def test_the_limit_is_per_event() -> None:
    decoder = SseDecoder(100)
    for _ in range(30):
        assert list(decoder.feed(b"data: " + b"x" * 60 + b"\n\n")) == [b"x" * 60]


def test_events_before_one_that_is_too_large_are_kept() -> None:
    decoder = SseDecoder(100)
    got: list[bytes] = []
    with pytest.raises(EventTooLarge):
        got.extend(decoder.feed(b"data: a\n\ndata: " + b"x" * 200))
    assert got == [b"a"]
