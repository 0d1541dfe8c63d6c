"""The JetStream streams of the mesh; every service declares them at start, all alike."""

from dataclasses import dataclass
from functools import partial

from nats.js import JetStreamContext
from nats.js.api import (
    DiscardPolicy,
    KeyValueConfig,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import BadRequestError, NotFoundError

from shared.bus.connection import NATS_ERRORS, Bus, BusError
from shared.bus.declare import TRY_S, declare
from shared.settings import Settings
from shared.subjects import Subjects

MAX_RECORD_BYTES = 256 * 1024
_NAME_IN_USE = 10058


def stream_configs(subjects: Subjects, settings: Settings) -> list[StreamConfig]:
    """The configuration of every stream."""
    work = [
        (subjects.requests_stream, subjects.all("request")),
        (subjects.tasks_stream, subjects.all("task")),
        (subjects.merges_stream, subjects.all("merge")),
    ]
    configs = [
        StreamConfig(
            name=name,
            subjects=[subject],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_age=settings.request_max_age_s,
            max_bytes=settings.work_max_bytes,
            duplicate_window=min(settings.dedupe_window_s, settings.request_max_age_s),
            num_replicas=settings.replicas,
        )
        for name, subject in work
    ]
    configs += [
        StreamConfig(
            name=subjects.events_stream(shard),
            subjects=[subjects.shard_events(shard)],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_age=settings.retention_s,
            max_bytes=settings.events_max_bytes // subjects.shards,
            max_msg_size=MAX_RECORD_BYTES,
            allow_direct=True,
            republish=RePublish(src=subjects.shard_events(shard), dest=subjects.shard_live(shard)),
            num_replicas=settings.replicas,
        )
        for shard in range(subjects.shards)
    ]
    configs.append(
        StreamConfig(
            name=subjects.transcripts_stream,
            subjects=[subjects.all("persist")],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_bytes=settings.transcripts_max_bytes,
            duplicate_window=settings.dedupe_window_s,
            allow_direct=True,
            num_replicas=settings.replicas,
        )
    )
    return configs


async def declare_streams(bus: Bus, subjects: Subjects, settings: Settings) -> None:
    """Create what is missing and bring the rest to this configuration.

    Raises BusError when JetStream refuses, for example for want of storage, or stays leaderless.
    """
    js = bus.jetstream(timeout_s=TRY_S)
    for config in stream_configs(subjects, settings):
        await declare(f"stream {config.name}", partial(_declare_stream, js, config))
    await declare(
        f"bucket {subjects.cancel_bucket}", partial(_declare_bucket, js, subjects, settings)
    )


async def _declare_stream(js: JetStreamContext, config: StreamConfig) -> None:
    try:
        await js.add_stream(config)
    except BadRequestError as error:
        if error.err_code != _NAME_IN_USE:
            raise
        await js.update_stream(config)


async def _declare_bucket(js: JetStreamContext, subjects: Subjects, settings: Settings) -> None:
    bucket = KeyValueConfig(
        bucket=subjects.cancel_bucket, ttl=settings.retention_s, replicas=settings.replicas
    )
    try:
        await js.create_key_value(bucket)
    except BadRequestError as error:
        if error.err_code != _NAME_IN_USE:
            raise
        info = await js.stream_info(subjects.cancel_stream)
        info.config.max_age = settings.retention_s
        info.config.num_replicas = settings.replicas
        await js.update_stream(info.config)


@dataclass(frozen=True, slots=True)
class Replicas:
    """Where a stream is kept."""

    stream: str
    leader: str
    """Name of a node; empty while there is none, or on a server alone."""
    current: tuple[str, ...]
    """Nodes besides the leader that have all of it."""
    behind: tuple[str, ...]
    """Nodes that lag, or don't answer."""


async def replicas_of(bus: Bus, subjects: Subjects) -> tuple[list[Replicas], list[str]]:
    """The state of the mesh's streams, and the names of those that JetStream lacks.

    Raises BusError without JetStream.
    """
    js = bus.jetstream()
    found, missing = [], []
    for name in _names(subjects):
        try:
            cluster = (await js.stream_info(name)).cluster
        except NotFoundError:
            missing.append(name)
            continue
        except NATS_ERRORS as error:
            raise BusError(f"JetStream doesn't answer: {error}") from error
        peers = (cluster.replicas if cluster else None) or []
        behind = [peer for peer in peers if peer.offline or not peer.current]
        found.append(
            Replicas(
                stream=name,
                leader=(cluster.leader if cluster else None) or "",
                current=tuple(peer.name or "?" for peer in peers if peer not in behind),
                behind=tuple(peer.name or "?" for peer in behind),
            )
        )
    return found, missing


async def missing_streams(bus: Bus, subjects: Subjects) -> list[str]:
    """Names of the mesh's streams that JetStream lacks. Raises BusError without JetStream."""
    return (await replicas_of(bus, subjects))[1]


def _names(subjects: Subjects) -> list[str]:
    return [
        subjects.requests_stream,
        subjects.tasks_stream,
        subjects.merges_stream,
        subjects.transcripts_stream,
        subjects.cancel_stream,
        *(subjects.events_stream(shard) for shard in range(subjects.shards)),
    ]
