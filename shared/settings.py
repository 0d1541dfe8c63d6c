"""Every setting of the mesh, in one typed place.

A value is looked for in this order; the first one found is in force:

1. what the caller passes (an option of the command line),
2. the environment: `BRAID_<KEY>`, and `OPENAI_BASE_URL` / `OPENAI_API_KEY`,
3. a TOML file of flat keys: the one `BRAID_CONFIG` names, else `./braid.toml` if there is one,
4. the default below.

An empty variable counts as not set. Unknown keys and bad values are refused, all in one message.
`Settings(...)` itself reads nothing but its arguments, so a test says exactly what it means.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

ENV_PREFIX: Final = "BRAID_"
CONFIG_VARIABLE: Final = "BRAID_CONFIG"
DEFAULT_CONFIG: Final = "braid.toml"
ALIASES: Final[Mapping[str, str]] = {
    "OPENAI_BASE_URL": "openai_base_url",
    "OPENAI_API_KEY": "openai_api_key",
}
TOKEN_SCHEMES: Final = frozenset({"nats", "tls", "ws", "wss"})
"""In `nats://token@host` what looks like a user is the secret."""
MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Processes = Annotated[int, Field(ge=1, le=256)]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86_400)]
Bytes = Annotated[int, Field(ge=1024)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Prefix = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
InstanceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
NatsUrl = Annotated[str, Field(pattern=r"^(nats|tls|ws|wss)://[^\s]+$")]
RedisUrl = Annotated[str, Field(pattern=r"^(redis|rediss|unix)://[^\s]+$")]
PostgresUrl = Annotated[str, Field(pattern=r"^(postgres|postgresql)://[^\s]+$")]
HttpUrl = Annotated[str, Field(pattern=r"^https?://[^\s/]+[^\s]*$")]


class SettingsError(Exception):
    """A setting is unknown, malformed or contradicts another; the message names its key."""


class Settings(BaseModel):
    """What is in force. Frozen; its repr masks secrets and passwords within URLs."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    prefix: Prefix = "braid"
    """First token of every subject, stream and bucket: meshes with different ones share a NATS."""
    service_id: InstanceName | None = None
    """Name of this instance in logs and in the services API; made up when absent."""

    host: str = "127.0.0.1"
    """Address the edge listens on."""
    port: Port = 8080
    """TCP port of the edge; 0 takes a free one."""
    data_dir: Path = Path(".braid")
    """Folder of everything `braid up` keeps: servers' data, logs, mesh.json."""

    workers: Processes = 1
    """Worker processes that `braid up` starts."""
    mergers: Processes = 1
    """Merger processes that `braid up` starts."""
    edges: Processes = 1
    """Edge processes that `braid up` starts; they share one port."""
    contexts: Processes = 1
    """Context processes that `braid up` starts."""
    persistences: Processes = 1
    """Persistence processes that `braid up` starts."""

    nats_url: NatsUrl = "nats://127.0.0.1:4222"
    """NATS server, or several separated by commas. When given, `braid up` starts none."""
    nats_nodes: Literal[1, 3] = 1
    """NATS servers that `braid up` starts: 1, or 3 as a cluster that outlives the loss of one."""
    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"
    """Redis or Valkey server. When given, `braid up` starts none."""
    postgres_url: PostgresUrl = "postgresql://127.0.0.1:5432/braid"
    """PostgreSQL database. When given, `braid up` starts none."""

    replicas: int = 1
    """Copies JetStream keeps of every stream: 1, 3 or 5; as many as nats_nodes unless given."""
    event_shards: Annotated[int, Field(ge=1, le=256)] = 1
    """Streams the event log is spread over; 6 on three nats_nodes unless given."""
    retention_s: Annotated[float, Field(ge=1, le=10 * 365 * 86_400)] = 3600
    """How long a stream can be resumed after its events were written."""
    events_max_bytes: Bytes = GIB
    """Size of the event log, all shards together; the oldest events go first."""
    work_max_bytes: Bytes = 256 * MIB
    """Size of each work queue (requests, tasks, merges); when full, new work is refused."""
    transcripts_max_bytes: Bytes = GIB
    """Size of the queue of transcripts that wait for Postgres."""
    request_max_age_s: Seconds = 900
    """Age at which work nobody took is given up."""
    dedupe_window_s: Seconds = 300
    """How long a repeated request is recognised by the queue itself."""
    ack_wait_s: Seconds = 5
    """Silence after which a work item goes to another instance."""
    max_deliver: Annotated[int, Field(ge=1, le=1000)] = 5
    """Tries of a work item before it counts as poisoned."""

    worker_slots: Count = 1024
    """Generations at the same time in one worker."""
    merger_slots: Count = 2000
    """Streams at the same time in one merger."""
    context_slots: Count = 256
    """Requests at the same time in one context service."""
    unacked_max_chunks: Count = 1024
    """Chunks of one branch the merger has not yet acknowledged, before the worker stops reading."""
    unacked_max_bytes: Bytes = MIB
    """The same bound, in bytes."""
    resend_after_s: Seconds = 0.5
    """Silence of the merger after which a worker sends unacknowledged chunks again."""

    connect_timeout_s: Seconds = 10
    """Budget to connect to a provider."""
    first_token_timeout_s: Seconds = 60
    """Budget from the call to the first token."""
    idle_timeout_s: Seconds = 60
    """Longest gap between two tokens; keep-alives do not count."""
    total_timeout_s: Seconds = 600
    """Budget of one generation as a whole."""
    mid_stream: Literal["continue", "restart", "fail"] = "restart"
    """What happens to a branch whose attempt broke off after some output, unless a request says."""
    on_disconnect: Literal["continue", "cancel"] = "continue"
    """What the last reader's leaving means, unless a request says."""
    cancel_grace_s: Annotated[float, Field(ge=0, le=86_400)] = 10
    """How long a stream without readers goes on when a disconnect means cancel."""

    heartbeat_s: Seconds = 10
    """Gap between two keep-alive comments to a reader."""
    tail_check_s: Seconds = 2
    """Silence after which the edge looks into the log for a lost record."""
    reader_buffer_bytes: Bytes = MIB
    """Output waiting for one slow reader before it is disconnected."""
    write_deadline_s: Seconds = 30
    """Longest one write to a reader may take before it is disconnected."""
    drain_deadline_s: Seconds = 20
    """Budget of each service to finish when it is told to stop."""
    max_body_bytes: Bytes = MIB
    """Largest request body."""
    max_branches: Annotated[int, Field(ge=1, le=256)] = 16
    """Most branches in one request."""

    default_model: Annotated[str, Field(min_length=1)] = "sim-echo"
    """Model of a request that names none."""
    openai_base_url: HttpUrl | None = None
    """OpenAI-compatible provider, with its /v1; OPENAI_BASE_URL is read as well."""
    openai_api_key: SecretStr | None = None
    """Key of that provider; OPENAI_API_KEY is read as well."""
    providers_file: Path | None = None
    """TOML file that describes several providers and routes models to them."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """How log lines look; auto: console on a terminal, json otherwise."""

    @model_validator(mode="before")
    @classmethod
    def _follow_the_nodes(cls, given: Any) -> Any:
        """On a cluster everything is kept three times, and a leader's death stalls a sixth."""
        if not isinstance(given, Mapping):
            return given
        given = dict(given)
        if isinstance(nodes := given.get("nats_nodes"), str) and nodes.strip() in {"1", "3"}:
            given["nats_nodes"] = int(nodes)  # a Literal takes no text for a number
        cluster = {"replicas": 3, "event_shards": 6} if given.get("nats_nodes") == 3 else {}
        return cluster | given

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.replicas not in {1, 3, 5}:
            raise ValueError("replicas: must be 1, 3 or 5")
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        return iter(self.masked().items())

    def masked(self) -> dict[str, Any]:
        """Key to value, JSON-ready, without secrets."""
        return {key: _mask(getattr(self, key)) for key in Settings.model_fields}

    def to_environ(self) -> dict[str, str]:
        """The variables that give a child process these same settings. Holds secrets."""
        return {
            variable(key): _reveal(value)
            for key in Settings.model_fields
            if (value := getattr(self, key)) is not None
        }


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each key where its value came from (`default` if nowhere)."""

    settings: Settings
    sources: Mapping[str, str]

    def is_given(self, key: str) -> bool:
        return self.sources[key] != "default"


class _Given(NamedTuple):
    value: Any
    source: str
    """What `braid config` shows: a variable, a file, or `option`."""
    written: str
    """What the user wrote: the variable, the key in the file, or the option."""


def variable(key: str) -> str:
    """The environment variable of a key."""
    return ENV_PREFIX + key.upper()


def load_settings(
    overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings in force. Raises SettingsError; see `load`."""
    return load(overrides, environ).settings


def load(
    overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Loaded:
    """The settings in force and where each came from.

    Overrides that are None count as not given; `environ` defaults to the process environment.
    Raises SettingsError with one line for every unknown key or bad value.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    given = _from_toml(environ, problems)
    given |= _from_environ(environ, problems)
    given |= _from_overrides(overrides or {}, problems)
    try:
        settings = Settings(**{key: item.value for key, item in given.items()})
    except ValidationError as error:
        problems += [_explain(detail, given) for detail in error.errors()]
        raise SettingsError("\n".join(problems)) from None
    if problems:
        raise SettingsError("\n".join(problems))
    sources = {
        key: given[key].source if key in given else "default" for key in Settings.model_fields
    }
    return Loaded(settings, sources)


def _from_toml(environ: Mapping[str, str], problems: list[str]) -> dict[str, _Given]:
    path = _config_path(environ)
    given = {}
    for name, value in (_read_toml(path) if path else {}).items():
        if name in Settings.model_fields:
            given[name] = _Given(value, str(path), name)
        else:
            problems.append(f"{name} in {path}: no such key{_hint(name, Settings.model_fields)}")
    return given


def _from_environ(environ: Mapping[str, str], problems: list[str]) -> dict[str, _Given]:
    ours = {variable(key): key for key in Settings.model_fields}
    given = {
        key: _Given(environ[name], name, name) for name, key in ALIASES.items() if environ.get(name)
    }
    for name, value in environ.items():
        if name in ours:
            if value:
                given[ours[name]] = _Given(value, name, name)
        elif name.startswith(ENV_PREFIX) and name != CONFIG_VARIABLE:
            problems.append(f"{name}: no such setting{_hint(name, ours)}")
    return given


def _from_overrides(overrides: Mapping[str, Any], problems: list[str]) -> dict[str, _Given]:
    given = {}
    for key, value in overrides.items():
        option = "--" + key.replace("_", "-")
        if key not in Settings.model_fields:
            problems.append(f"{option}: no such setting{_hint(key, Settings.model_fields)}")
        elif value is not None:
            given[key] = _Given(value, "option", option)
    return given


def mask_url(url: str) -> str:
    """The URL, or comma-separated URLs, with every password replaced by ***."""
    return ",".join(_mask_one(part) for part in url.split(",")) if "://" in url else url


def _mask_one(url: str) -> str:
    try:
        parts = urlsplit(url)
        user, colon, _ = parts.netloc.rpartition("@")[0].partition(":")
    except ValueError:
        return "***"
    host = parts.netloc.rpartition("@")[2]
    if colon:
        parts = parts._replace(netloc=f"{user}:***@{host}")
    elif user and parts.scheme in TOKEN_SCHEMES:
        parts = parts._replace(netloc=f"***@{host}")
    query = re.sub(r"(?<![^&])(\w*(?:password|token|key))=[^&]*", r"\1=***", parts.query)
    return urlunsplit(parts._replace(query=query))


def _mask(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, Path):
        return str(value)
    return mask_url(value) if isinstance(value, str) else value


def _reveal(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _config_path(environ: Mapping[str, str]) -> Path | None:
    if name := environ.get(CONFIG_VARIABLE):
        return Path(name)
    default = Path(DEFAULT_CONFIG)
    return default if default.is_file() else None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); "
            f"correct {CONFIG_VARIABLE}, or unset it to go without a file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML ({error})") from None


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "; `braid config` lists them all"


def _explain(detail: Any, given: Mapping[str, _Given]) -> str:
    """One line for one pydantic error: what the user wrote, what is wrong, what the key is for."""
    if not detail["loc"]:
        message = str(detail["ctx"]["error"])
        key, _, problem = message.partition(": ")
        written = given[key].written if key in given else variable(key)
        return f"{written}: {problem}"
    key = str(detail["loc"][0])
    value, source, written = given[key]
    field = Settings.model_fields[key]
    shown = "***" if "SecretStr" in str(field.annotation) else repr(_mask(value))
    where = f" in {source}" if source not in {written, "option"} else ""
    problem = str(detail["msg"])
    problem = problem[:1].lower() + problem[1:]
    return f"{written}{where}: {shown} is refused: {problem}. {field.description}"
