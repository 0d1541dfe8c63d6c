"""The closed list of what can go wrong, one table from code to HTTP status.

Every error that leaves a service is one of these codes; a message says what to change and never
holds a prompt, a token, a key or a traceback.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """`status` is the HTTP status when the error is answered before a stream starts."""

    status: int
    retryable: bool


KINDS: dict[str, ErrorKind] = {
    # The request
    "bad_request": ErrorKind(400, False),
    "unauthorized": ErrorKind(401, False),
    "not_found": ErrorKind(404, False),
    "method_not_allowed": ErrorKind(405, False),
    "not_acceptable": ErrorKind(406, False),
    "conflict": ErrorKind(409, False),
    "gone": ErrorKind(410, False),
    "payload_too_large": ErrorKind(413, False),
    "unsupported_media_type": ErrorKind(415, False),
    "invalid": ErrorKind(422, False),
    "rate_limited": ErrorKind(429, True),
    # The mesh
    "internal": ErrorKind(500, False),
    "unavailable": ErrorKind(503, True),
    "overloaded": ErrorKind(503, True),
    "expired": ErrorKind(504, True),
    "attempts_exhausted": ErrorKind(502, True),
    # The upstream
    "no_provider": ErrorKind(503, False),
    "upstream_refused": ErrorKind(502, True),
    "upstream_rejected": ErrorKind(502, False),
    "upstream_auth": ErrorKind(502, False),
    "upstream_rate_limited": ErrorKind(429, True),
    "upstream_error": ErrorKind(502, True),
    "upstream_timeout": ErrorKind(504, True),
    "upstream_reset": ErrorKind(502, True),
    "upstream_malformed": ErrorKind(502, True),
    "upstream_oversized": ErrorKind(502, False),
}


class BraidError(Exception):
    """An error with a code of the closed list. Raises KeyError for any other code."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = KINDS[code]
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        return self.kind.status

    @property
    def retryable(self) -> bool:
        return self.kind.retryable
