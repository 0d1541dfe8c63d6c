"""Errors as OpenAI's API words them: a status and {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec


class ApiError(Exception):
    """The request gets this answer instead of a completion."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        return msgspec.json.encode(
            {
                "error": {
                    "message": self.message,
                    "type": self.kind,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def missing_key() -> ApiError:
    return ApiError(
        401,
        "You didn't provide an API key. Send it in an Authorization header using Bearer auth "
        "(i.e. Authorization: Bearer YOUR_KEY).",
    )


def wrong_key() -> ApiError:
    return ApiError(
        401,
        "Incorrect API key provided. Send one of the keys this simulator was started with.",
        code="invalid_api_key",
    )


def unknown_model(model: str, known: Iterable[str]) -> ApiError:
    return ApiError(
        404,
        f"The model `{model}` does not exist or you do not have access to it. "
        f"Models here: {', '.join(known)}.",
        param="model",
        code="model_not_found",
    )


def rate_limited(model: str, retry_after_s: float) -> ApiError:
    return ApiError(
        429,
        f"Rate limit reached for {model}. Please try again in {retry_after_s:g}s.",
        kind="requests",
        code="rate_limit_exceeded",
        headers={"Retry-After": f"{retry_after_s:g}"},
    )


def server_error() -> ApiError:
    return ApiError(
        500,
        "The server had an error while processing your request. Sorry about that!",
        kind="server_error",
        code="server_error",
    )


def overloaded(retry_after_s: float | None) -> ApiError:
    return ApiError(
        503,
        "The engine is currently overloaded, please try again later.",
        kind="server_error",
        code="service_unavailable",
        headers={} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"},
    )
