"""Headers mean what their specifications say; a position is never guessed."""

import pytest

from services.edge import negotiate
from shared.errors import BraidError


@pytest.mark.parametrize(
    "value",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/vnd.team+json",
    ],
)
def test_json_may_be_called_by_all_its_names(value: str) -> None:
    negotiate.require_json(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
    ],
)
def test_a_body_of_another_kind_is_refused_with_what_to_send(value: str | None) -> None:
    with pytest.raises(BraidError, match="Content-Type: application/json") as caught:
        negotiate.require_json(value)
    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", False),
        ("text/event-stream", True),
        ("application/json, Text/Event-Stream;q=0.9", True),
        ("text/event-stream;q=0, application/json", False),
    ],
)
def test_only_who_names_event_streams_gets_one(accept: str | None, expected: bool) -> None:
    assert negotiate.wants_events(accept) is expected


@pytest.mark.parametrize(
    ("header", "query", "expected"),
    [(None, None, 0), ("", "", 0), (None, "5", 5), ("7", None, 7), ("7", "5", 7), ("0", "5", 0)],
)
def test_the_header_wins_because_a_reconnecting_eventsource_repeats_its_first_address(
    header: str | None, query: str | None, expected: int
) -> None:
    assert negotiate.position(header, query) == expected


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "1 ", "+1", "٣", "9" * 16, "0x1"])
def test_a_position_that_is_no_event_id_is_refused(value: str) -> None:
    with pytest.raises(BraidError) as caught:
        negotiate.position(None, value)
    assert (caught.value.status, caught.value.param) == (400, "after")
    with pytest.raises(BraidError) as caught:
        negotiate.position(value, "3")
    assert (caught.value.status, caught.value.param) == (400, "Last-Event-ID")


def test_a_position_the_stream_has_not_come_to_is_refused_because_it_was_never_sent() -> None:
    negotiate.require_reached(5, 5)
    with pytest.raises(BraidError, match="last event is 5") as caught:
        negotiate.require_reached(6, 5)
    assert caught.value.status == 400
