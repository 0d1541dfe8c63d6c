"""Fixtures of integration tests: a neighbour on the bus, an upstream, a worker that calls it."""

from collections.abc import AsyncIterator

import pytest

from services.simulator.service import Simulator
from services.worker.service import Worker
from shared.bus import Link
from shared.settings import Settings
from tests.support.meshkit import link_of
from tests.support.workerkit import simulating, working


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    async with simulating() as simulator:
        yield simulator


@pytest.fixture
async def link(bus_settings: Settings) -> AsyncIterator[Link]:
    async with link_of(bus_settings) as opened:
        yield opened


@pytest.fixture
def with_upstream(bus_settings: Settings, upstream: Simulator) -> Settings:
    return bus_settings.model_copy(update={"openai_base_url": upstream.base_url})


@pytest.fixture
async def worker(with_upstream: Settings) -> AsyncIterator[Worker]:
    async with working(with_upstream) as service:
        yield service
