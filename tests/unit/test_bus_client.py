"""The shortcuts past nats-py keep what nats-py promises."""

import pytest

from shared.bus.client import Received, parse_headers


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"NATS/1.0\r\nNats-Sequence: 7\r\nA:b\r\n\r\n", {"Nats-Sequence": "7", "A": "b"}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 404 No Messages\r\n\r\n", {"Status": "404", "Description": "No Messages"}),
        (
            b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\n\r\n",
            {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Consumer": "1016"},
        ),
        (b"NATS/1.0\r\nk: a: b \xff\r\nno colon\r\n\r\n", {"k": "a: b \ufffd"}),
    ],
)
def test_headers_and_inline_statuses_are_read_as_the_protocol_writes_them(
    block: bytes, headers: dict[str, str]
) -> None:
    assert parse_headers(block) == headers
    assert Received("s", "", b"", block).headers == headers


def test_a_message_without_headers_has_none() -> None:
    assert Received("s", "r", b"d", None).headers is None
