"""Every subject and JetStream name of the mesh, as functions of checked tokens.

An f-string subject anywhere else is a hidden API. All names start with a prefix (`braid`), which
is upper-cased for stream names, so that several meshes can share one NATS system.
"""

from dataclasses import dataclass

from shared.ids import is_sid, is_token, shard_of


def _token(value: str, what: str) -> str:
    if not is_token(value):
        raise ValueError(
            f"{what} {value!r} can't be part of a subject: use 1 to 64 of A-Z a-z 0-9 _ -"
        )
    return value


def _sid(sid: str) -> str:
    if not is_sid(sid):
        raise ValueError(f"stream id {sid!r} is not 22 base62 characters")
    return sid


@dataclass(frozen=True, slots=True)
class Subjects:
    """The subject map of one mesh.

    Raises ValueError from every method that is given a token a subject can't carry.
    """

    prefix: str = "braid"
    shards: int = 1

    def __post_init__(self) -> None:
        _token(self.prefix, "prefix")
        if self.shards < 1:
            raise ValueError(f"shards must be at least 1, not {self.shards}")

    # JetStream streams ------------------------------------------------------------------

    @property
    def requests_stream(self) -> str:
        return f"{self.prefix.upper()}_REQUESTS"

    @property
    def tasks_stream(self) -> str:
        return f"{self.prefix.upper()}_TASKS"

    @property
    def merges_stream(self) -> str:
        return f"{self.prefix.upper()}_MERGES"

    @property
    def transcripts_stream(self) -> str:
        return f"{self.prefix.upper()}_TRANSCRIPTS"

    def events_stream(self, shard: int) -> str:
        return f"{self.prefix.upper()}_EVENTS_{shard}"

    @property
    def cancel_bucket(self) -> str:
        return f"{self.prefix}_cancel"

    @property
    def cancel_stream(self) -> str:
        """The JetStream stream behind the bucket."""
        return f"KV_{self.cancel_bucket}"

    def cancel_mark(self, sid: str) -> str:
        """The subject of a stream's mark in the bucket."""
        return f"$KV.{self.cancel_bucket}.{_sid(sid)}"

    # Work queues ------------------------------------------------------------------------

    def request(self, kind: str) -> str:
        return f"{self.prefix}.request.{_token(kind, 'request kind')}"

    def task(self, pool: str, priority: str) -> str:
        return f"{self.prefix}.task.{_token(pool, 'pool')}.{_token(priority, 'priority')}"

    def merge(self, sid: str) -> str:
        return f"{self.prefix}.merge.{self.shard(sid)}"

    def persist(self, session_id: str, sid: str, part: str) -> str:
        session = _token(session_id, "session id")
        return f"{self.prefix}.persist.{session}.{_sid(sid)}.{_token(part, 'part')}"

    def persist_session(self, session_id: str) -> str:
        """Every transcript of one session that is still waiting to be stored."""
        return f"{self.prefix}.persist.{_token(session_id, 'session id')}.>"

    def persist_stream(self, sid: str) -> str:
        """Every transcript of one stream that is still waiting to be stored."""
        return f"{self.prefix}.persist.*.{_sid(sid)}.>"

    def holders(self, stream: str, consumer: str) -> str:
        """To all who take from a work queue: does one of you still handle this item?"""
        return f"{self.prefix}.holders.{_token(stream, 'stream')}.{_token(consumer, 'consumer')}"

    # The log ----------------------------------------------------------------------------

    def shard(self, sid: str) -> int:
        return shard_of(_sid(sid), self.shards)

    def events(self, sid: str) -> str:
        return f"{self.prefix}.events.{self.shard(sid)}.{sid}"

    def live(self, sid: str) -> str:
        """Where committed records of a stream are republished."""
        return f"{self.prefix}.live.{self.shard(sid)}.{sid}"

    # Core NATS --------------------------------------------------------------------------

    def chunks(self, sid: str) -> str:
        """Worker to owning merger."""
        return f"{self.prefix}.chunks.{_sid(sid)}"

    def acks(self, worker: str) -> str:
        """Merger to worker."""
        return f"{self.prefix}.acks.{_token(worker, 'worker id')}"

    def control(self, sid: str) -> str:
        """Hello, cancel, closed and standing questions of one stream."""
        return f"{self.prefix}.control.{_sid(sid)}"

    def readers(self, sid: str) -> str:
        """Edge to all edges: does anybody read this stream?"""
        return f"{self.prefix}.readers.{_sid(sid)}"

    def archive(self, sid: str) -> str:
        """Edge to any persistence: what is stored of this stream?"""
        return f"{self.prefix}.archive.{_sid(sid)}"

    def telemetry(self, service: str) -> str:
        return f"{self.prefix}.telemetry.{_token(service, 'service')}"

    def all(self, kind: str) -> str:
        """Wildcard over one kind of subject: `all("task")` is `braid.task.>`."""
        return f"{self.prefix}.{_token(kind, 'kind')}.>"

    def shard_events(self, shard: int) -> str:
        return f"{self.prefix}.events.{shard}.>"

    def shard_live(self, shard: int) -> str:
        return f"{self.prefix}.live.{shard}.>"
