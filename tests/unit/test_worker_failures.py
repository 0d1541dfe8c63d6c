"""Whatever goes wrong upstream becomes one code of the list, and no message holds a secret."""

import json
from typing import Any

import aiohttp
import httpx2
import openai
import pytest
from aiohttp.client_reqrep import ConnectionKey

from services.worker.failures import (
    Failure,
    clean,
    from_status,
    from_transport,
    retry_after_s,
    wrong_media,
)

REQUEST = httpx2.Request("POST", "http://gpu.internal/v1/chat/completions")
HOST = ConnectionKey("gpu.internal", 80, False, True, None, None, None)


def refusal(status: int, body: Any = None, **headers: str) -> Failure:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return from_status(status, named, json.dumps(body).encode(), ("hunter2",), now=0.0)


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, "upstream_rejected", False),
        (401, "upstream_auth", False),
        (403, "upstream_auth", False),
        (404, "upstream_rejected", False),
        (408, "upstream_timeout", True),
        (413, "upstream_rejected", False),
        (422, "upstream_rejected", False),
        (429, "upstream_rate_limited", True),
        (500, "upstream_error", True),
        (502, "upstream_error", True),
        (503, "upstream_error", True),
        (529, "upstream_error", True),
    ],
)
def test_a_status_has_its_code(status: int, code: str, retryable: bool) -> None:
    failure = refusal(status)
    assert (failure.code, failure.retryable) == (code, retryable)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "max_tokens is too large"}},
        {"error": "max_tokens is too large"},
        {"message": "max_tokens is too large"},
        {"detail": "max_tokens is too large"},
    ],
)
def test_a_rejection_says_what_the_provider_said(body: Any) -> None:
    said = "the provider rejected the request (400): max_tokens is too large"
    assert refusal(400, body).message == said


@pytest.mark.parametrize("body", [b"<html>nginx 502</html>", b"", b"[1]", b"\xff", b'"x"'])
def test_a_page_instead_of_an_error_is_not_passed_on(body: bytes) -> None:
    failure = from_status(502, {}, body, (), now=0.0)
    assert failure.message == "the provider failed (502)"


def test_keys_never_leave_in_a_message() -> None:
    quoting = {"error": {"message": "Incorrect API key provided: sk-proj-abc***xyz hunter2"}}
    assert "sk-" not in refusal(401, quoting).message
    rejected = refusal(400, quoting).message
    assert "sk-" not in rejected
    assert "hunter2" not in rejected
    assert clean("Authorization: Bearer abc.def refused") == "Authorization: Bearer *** refused"


def test_a_message_is_one_short_line() -> None:
    assert clean("a\n\tb\x00c\x1b[31m") == "a b c [31m"
    assert len(clean("word " * 1_000)) <= 300


def test_a_rate_limit_says_when_to_come_back() -> None:
    failure = refusal(429, retry_after="7")
    assert failure.retry_after_s == 7
    assert failure.message == "the provider's rate limit is reached; try again in 7 s"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 50.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, now=10.0) == seconds


def wrapped(cause: Exception) -> openai.APIConnectionError:
    """As the SDK raises it: every dropped connection looks like a connect timeout."""
    error = openai.APITimeoutError(REQUEST)
    middle = httpx2.ConnectTimeout("")
    middle.__cause__ = cause
    error.__cause__ = middle
    return error


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (aiohttp.ConnectionTimeoutError(), "upstream_timeout"),
        (aiohttp.ClientConnectorError(HOST, OSError("refused")), "upstream_refused"),
        (aiohttp.ClientConnectorDNSError(HOST, OSError("unknown")), "upstream_refused"),
        (aiohttp.ServerDisconnectedError(), "upstream_reset"),
        (aiohttp.ClientOSError(104, "reset"), "upstream_reset"),
        (aiohttp.ClientPayloadError("incomplete"), "upstream_reset"),
        (ConnectionResetError(), "upstream_reset"),
        (ConnectionRefusedError(), "upstream_refused"),
        (TimeoutError(), "upstream_timeout"),
        (aiohttp.InvalidURL("x"), "upstream_malformed"),
        (httpx2.DecodingError("not gzip"), "upstream_malformed"),
    ],
)
def test_a_transport_error_is_told_by_its_cause(cause: Exception, code: str) -> None:
    failure = from_transport(wrapped(cause))
    assert failure.code == code
    assert "gpu.internal" not in failure.message


def test_a_wrong_content_type_is_named() -> None:
    assert wrong_media("text/html").message == "the provider answered with text/html"
