"""Logs and counters. Logs name stable actions with ids, never content."""

import logging
import sys
from collections import Counter
from typing import Any

import structlog

from shared.settings import Settings


def configure(settings: Settings, service: str, instance: str) -> None:
    """Set up structlog for this process: console on a terminal, JSON lines elsewhere."""
    as_text = settings.log_format == "console" or (
        settings.log_format == "auto" and sys.stderr.isatty()
    )
    # A traceback with local variables would show prompts and keys.
    renderers: list[Any] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if as_text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(service=service, instance=instance)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")


class Counters(Counter[str]):
    """What a service has counted since its start; shown by $SRV.STATS."""
