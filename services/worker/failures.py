"""What went wrong upstream, as one of the mesh's error codes. Pure.

A message that leaves the worker is fixed text or the provider's own words, trimmed and without
anything that looks like a key; it says nothing of addresses.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import httpx2
import msgspec

from services.worker.wire import error_decoder
from shared.errors import KINDS

MAX_MESSAGE_CHARS = 300

_KEY_LIKE = re.compile(
    r"\b(?:sk|pk|rk|ak|key|token|hf|gsk|xai|nvapi)[-_][\w*.-]{6,}|(?<=bearer )\S+", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed. `repeat` is False when the same call again would fare no better."""

    code: str
    message: str
    retry_after_s: float | None = None
    repeat: bool = True

    @property
    def retryable(self) -> bool:
        return KINDS[self.code].retryable


class UpstreamFailed(Exception):
    """An attempt came to nothing, or broke off."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


def from_status(
    status: int, headers: Mapping[str, str], body: bytes, secrets: Iterable[str], now: float
) -> Failure:
    """A provider's refusal, with its own reason where that helps whoever asked.

    `now` is in Unix seconds, for a Retry-After that is a date.
    """
    wait_s = retry_after_s(headers, now)
    if status in {401, 403}:
        # Providers quote the key here.
        return Failure("upstream_auth", f"the provider refused our credentials ({status})")
    said = clean(_message_in(body), secrets)
    reason = f": {said}" if said else ""
    if status == 429:
        later = f"; try again in {wait_s:g} s" if wait_s is not None else ""
        return Failure(
            "upstream_rate_limited", f"the provider's rate limit is reached{later}", wait_s
        )
    if status == 408:
        return Failure("upstream_timeout", f"the provider timed out ({status})", wait_s)
    if 400 <= status < 500:
        return Failure("upstream_rejected", f"the provider rejected the request ({status}){reason}")
    return Failure("upstream_error", f"the provider failed ({status}){reason}", wait_s)


def from_stream_error(error: Any, secrets: Iterable[str] = ()) -> Failure:
    """An `error` within a stream; `code`, `status` or `type` may say what kind it is."""
    fields = error if isinstance(error, dict) else {"message": error}
    words = {str(fields.get(name)) for name in ("code", "status", "type")}
    said = clean(_text_of(fields.get("message")), secrets)
    reason = f": {said}" if said else ""
    if words & {"429", "rate_limit_exceeded", "rate_limit_error"}:
        return Failure("upstream_rate_limited", "the provider's rate limit is reached")
    if words & {"401", "403", "invalid_api_key"}:
        return Failure("upstream_auth", "the provider refused our credentials")
    if words & {"400", "404", "422", "invalid_request_error", "context_length_exceeded"}:
        return Failure("upstream_rejected", f"the provider rejected the request{reason}")
    return Failure("upstream_error", f"the provider reported an error{reason}")


def from_transport(error: BaseException) -> Failure:
    """An exception of the HTTP client.

    The SDK's aiohttp transport reports a dropped connection as a connect timeout, so the cause that
    it wraps decides.
    """
    for cause in _causes(error):
        match cause:
            case aiohttp.ServerTimeoutError():
                return Failure("upstream_timeout", "connecting to the provider took too long")
            case aiohttp.ClientConnectorError():
                return Failure("upstream_refused", "the provider can't be reached")
            case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError():
                return Failure("upstream_reset", "the provider closed the connection")
            case aiohttp.ClientError() | httpx2.DecodingError():
                return Failure("upstream_malformed", "the provider's answer is not valid HTTP")
    for cause in _causes(error):
        match cause:
            case TimeoutError():
                return Failure("upstream_timeout", "connecting to the provider took too long")
            case ConnectionRefusedError():
                return Failure("upstream_refused", "the provider can't be reached")
    return Failure("upstream_reset", "the connection to the provider broke")


def wrong_media(media: str) -> Failure:
    """An answer of a content type that can't hold one."""
    return Failure("upstream_malformed", f"the provider answered with {clean(media[:80]) or 'no'}")


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds the provider asks us to wait, if it does: RFC 9110, 10.2.3, or OpenAI's `-ms`."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            wait_s = float(value) * unit_s
        except ValueError:
            try:
                wait_s = parsedate_to_datetime(value).timestamp() - now
            except ValueError:
                continue
        if math.isfinite(wait_s):
            return max(0.0, wait_s)
    return None


def clean(text: str, secrets: Iterable[str] = ()) -> str:
    """One line of at most 300 characters without keys."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = _KEY_LIKE.sub("***", text)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


def _message_in(body: bytes) -> str:
    try:
        answer = error_decoder.decode(body)
    except msgspec.DecodeError:
        return ""  # a proxy's page says nothing to a client
    for found in (answer.error, answer.message, answer.detail):
        if text := _text_of(found):
            return text
    return ""


def _text_of(found: Any) -> str:
    if isinstance(found, dict):
        found = found.get("message")
    return found if isinstance(found, str) else ""


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
