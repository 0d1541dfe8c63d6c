"""The only package that speaks NATS.

`Bus` is one connection: send, subscribe, request. On it stand `Publisher` (acknowledged
JetStream publishes), `WorkQueue` (pull with in-progress acks), `EventLog` (fenced commit, replay,
tail), `CancelMarks` (durable marks) and `Presence` (the NATS services API); a `Link` is all a
service opens.
"""

from shared.bus.connection import Bus, BusError, Message, Subscription
from shared.bus.link import Link
from shared.bus.log import EventLog, Fenced, LogEntry, StreamExists
from shared.bus.marks import CancelMarks
from shared.bus.presence import Instance, Presence, discover
from shared.bus.publisher import Publisher, PublishRefused, WrongSequence
from shared.bus.queue import WorkItem, WorkQueue
from shared.bus.streams import Replicas, declare_streams, missing_streams, replicas_of

__all__ = [
    "Bus",
    "BusError",
    "CancelMarks",
    "EventLog",
    "Fenced",
    "Instance",
    "Link",
    "LogEntry",
    "Message",
    "Presence",
    "PublishRefused",
    "Publisher",
    "Replicas",
    "StreamExists",
    "Subscription",
    "WorkItem",
    "WorkQueue",
    "WrongSequence",
    "declare_streams",
    "discover",
    "missing_streams",
    "replicas_of",
]
