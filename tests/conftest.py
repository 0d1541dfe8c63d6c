"""Fixtures every test may use."""

from tests.support.servers import (
    _no_settings_from_the_environment,
    bus_settings,
    cluster_settings,
    empty_redis_url,
    nats_cluster,
    nats_server,
    nats_url,
    postgres_server,
    postgres_url,
    redis_server,
    redis_url,
    servers_dir,
    settings,
)

__all__ = [
    "_no_settings_from_the_environment",
    "bus_settings",
    "cluster_settings",
    "empty_redis_url",
    "nats_cluster",
    "nats_server",
    "nats_url",
    "postgres_server",
    "postgres_url",
    "redis_server",
    "redis_url",
    "servers_dir",
    "settings",
]
