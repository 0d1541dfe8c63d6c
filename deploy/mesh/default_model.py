"""Which model answers a request that names none, when nobody has said it."""

from __future__ import annotations

from typing import Final

import aiohttp
import msgspec
from msgspec import Struct

from shared.providers import Provider, Providers

TIMEOUT_S: Final = 5.0
NO_CHAT: Final = ("embed", "whisper", "tts", "dall-e", "image", "moderation", "rerank", "audio")
"""Parts of names of models that don't chat."""


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]


async def first_model(providers: Providers) -> str | None:
    """The default provider's first model: from the providers file, else the first it lists.

    None when it lists none, or can't be asked.
    """
    provider = providers.default
    if provider is None:
        return None
    exact = [model for model in provider.models if not any(char in model for char in "*?[")]
    return next(iter(exact), None) or choose(await _listed(provider))


def choose(models: list[str]) -> str | None:
    """The first that seems to chat, else the first."""
    chatting = (model for model in models if not any(part in model.lower() for part in NO_CHAT))
    return next(chatting, None) or next(iter(models), None)


async def _listed(provider: Provider) -> list[str]:
    headers = {name: value.get_secret_value() for name, value in provider.headers.items()}
    if provider.api_key is not None:
        headers["authorization"] = f"Bearer {provider.api_key.get_secret_value()}"
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    url = provider.base_url.rstrip("/") + "/models"
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(url, headers=headers) as answer,
        ):
            if answer.status != 200:
                return []
            body = await answer.read()
        return [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
        return []
