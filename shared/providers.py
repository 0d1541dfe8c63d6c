"""Which upstream serves which model.

Without a providers file there is one provider: `openai_base_url` with `openai_api_key`; the key
alone means OpenAI itself. A providers file describes several:

    [[providers]]
    name = "house"
    base_url = "http://gpu.internal:8000/v1"
    api_key_env = "HOUSE_KEY"           # the variable that holds the key; or api_key = "..."
    models = ["llama-*", "qwen3-32b"]   # exact names or globs; none: reached by default or route
    default = true                      # else the first provider is the default one
    headers = { x-team = "search" }
    capabilities = { continue_partial = true, relaxed_end = false }

    [routes]
    fast = "house"                      # model = provider
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from shared.errors import BraidError
from shared.settings import HttpUrl, Settings, SettingsError

OPENAI_BASE_URL: Final = "https://api.openai.com/v1"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
HeaderValue = Annotated[SecretStr, Field(max_length=8192)]


class Capabilities(BaseModel):
    """What a provider can do beyond the protocol, or does differently."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    continue_partial: bool = False
    """It continues an assistant message that was cut off."""
    relaxed_end: bool = False
    """Its streams may end with [DONE] but no finish reason: that counts as `stop`."""


class Provider(BaseModel):
    """One OpenAI-compatible upstream. Its repr shows neither key nor header values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    base_url: HttpUrl
    api_key: SecretStr | None = None
    api_key_env: str | None = None
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    default: bool = False
    headers: Mapping[HeaderName, HeaderValue] = {}
    capabilities: Capabilities = Capabilities()

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("api_key: give either api_key or api_key_env, not both")
        return self

    def serves(self, model: str) -> bool:
        """Whether one of its globs matches."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)


class Providers:
    """Every provider, and the way from a model to one."""

    def __init__(self, providers: tuple[Provider, ...], routes: Mapping[str, str]) -> None:
        self._by_name = {provider.name: provider for provider in providers}
        self._routes = dict(routes)
        self._default = next((each for each in providers if each.default), None) or next(
            iter(providers), None
        )

    @classmethod
    def load(cls, settings: Settings, environ: Mapping[str, str] | None = None) -> Providers:
        """From the providers file or the settings; perhaps none at all.

        Raises SettingsError naming file, provider and key.
        """
        if settings.providers_file is not None:
            environ = os.environ if environ is None else environ
            return _from_file(settings.providers_file, environ)
        if settings.openai_base_url is None and settings.openai_api_key is None:
            return cls((), {})
        base_url = settings.openai_base_url or OPENAI_BASE_URL
        return cls(
            (Provider(name="default", base_url=base_url, api_key=settings.openai_api_key),), {}
        )

    def __bool__(self) -> bool:
        return bool(self._by_name)

    @property
    def default(self) -> Provider | None:
        """Where a model goes that no other provider claims."""
        return self._default

    @property
    def all(self) -> tuple[Provider, ...]:
        return tuple(self._by_name.values())

    def route(self, model: str) -> Provider:
        """By route, then exact name, then glob in the file's order, then the default provider.

        Raises BraidError `no_provider` when none is configured.
        """
        if self._default is None:
            raise BraidError(
                "no_provider",
                "no provider is configured: set OPENAI_BASE_URL, OPENAI_API_KEY or "
                "BRAID_PROVIDERS_FILE",
            )
        if name := self._routes.get(model):
            return self._by_name[name]
        exact = (each for each in self.all if model in each.models)
        matching = (each for each in self.all if each.serves(model))
        return next(exact, None) or next(matching, None) or self._default


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    providers: Annotated[tuple[Provider, ...], Field(min_length=1)]
    routes: Mapping[str, str] = {}


def _from_file(path: Path, environ: Mapping[str, str]) -> Providers:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); correct BRAID_PROVIDERS_FILE"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML ({error})") from None
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(path, raw, each["loc"], each["msg"]) for each in error.errors()]
        raise SettingsError("\n".join(lines)) from None
    providers = tuple(_with_key(path, each, environ) for each in file.providers)
    names = [each.name for each in providers]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{path}: provider {name!r}: name: is used twice")
    if sum(each.default for each in providers) > 1:
        raise SettingsError(f"{path}: only one provider can have default = true")
    for model, name in file.routes.items():
        if name not in names:
            raise SettingsError(
                f"{path}: routes: {model!r} goes to {name!r}, which is no provider here; "
                f"there are {', '.join(names)}"
            )
    return Providers(providers, file.routes)


def _with_key(path: Path, provider: Provider, environ: Mapping[str, str]) -> Provider:
    if provider.api_key_env is None:
        return provider
    key = environ.get(provider.api_key_env)
    if not key:
        raise SettingsError(
            f"{path}: provider {provider.name!r}: api_key_env: "
            f"the variable {provider.api_key_env} is not set"
        )
    return provider.model_copy(update={"api_key": SecretStr(key)})


def _explain(path: Path, raw: Any, loc: tuple[str | int, ...], message: str) -> str:
    """One line for one pydantic error; it never shows a value, which may be a key."""
    where = f"{path}: "
    if len(loc) > 1 and loc[0] == "providers":
        index = int(loc[1])
        entry = raw["providers"][index]
        name = entry.get("name") if isinstance(entry, dict) else None
        which = repr(name) if name else f"number {index + 1}"
        where += f"provider {which}: "
        loc = loc[2:]
    key = ".".join(str(part) for part in loc)
    problem = message.removeprefix("Value error, ")
    return f"{where}{key}: {problem}" if key else f"{where}{problem}"
