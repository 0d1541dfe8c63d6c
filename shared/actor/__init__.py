"""The life of a service: start, run, drain; owned tasks; bounded mailboxes."""

from shared.actor.life import Service, run_service
from shared.actor.mailbox import Mailbox
from shared.actor.tasks import Tasks

__all__ = ["Mailbox", "Service", "Tasks", "run_service"]
