"""The JetStream streams of the mesh; every service declares them at start, all alike."""

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

    Raises BusError when JetStream refuses, for example for want of storage.
    """
    js = bus.jetstream()
    for config in stream_configs(subjects, settings):
        try:
            try:
                await js.add_stream(config)
            except BadRequestError as error:
                if error.err_code != _NAME_IN_USE:
                    raise
                await js.update_stream(config)
        except NATS_ERRORS as error:
            raise BusError(f"can't declare stream {config.name}: {error}") from error
    await _declare_bucket(js, subjects, settings)


async def _declare_bucket(js: JetStreamContext, subjects: Subjects, settings: Settings) -> None:
    bucket = KeyValueConfig(
        bucket=subjects.cancel_bucket, ttl=settings.retention_s, replicas=settings.replicas
    )
    try:
        try:
            await js.create_key_value(bucket)
        except BadRequestError as error:
            if error.err_code != _NAME_IN_USE:
                raise
            info = await js.stream_info(f"KV_{bucket.bucket}")
            info.config.max_age = settings.retention_s
            info.config.num_replicas = settings.replicas
            await js.update_stream(info.config)
    except NATS_ERRORS as error:
        raise BusError(f"can't declare bucket {bucket.bucket}: {error}") from error


async def missing_streams(bus: Bus, subjects: Subjects) -> list[str]:
    """Names of the mesh's streams that JetStream lacks. Raises BusError without JetStream."""
    names = [
        subjects.requests_stream,
        subjects.tasks_stream,
        subjects.merges_stream,
        subjects.transcripts_stream,
        f"KV_{subjects.cancel_bucket}",
        *(subjects.events_stream(shard) for shard in range(subjects.shards)),
    ]
    js = bus.jetstream()
    missing = []
    for name in names:
        try:
            await js.stream_info(name)
        except NotFoundError:
            missing.append(name)
        except NATS_ERRORS as error:
            raise BusError(f"JetStream doesn't answer: {error}") from error
    return missing
