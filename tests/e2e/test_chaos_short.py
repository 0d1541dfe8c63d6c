"""The short form of `make chaos`: one of each service is killed, and a merger becomes a zombie.

The seed is fixed, so that a failure here can be run again; the long form takes another each time.
"""

from pathlib import Path

import pytest

from tests.chaos.campaign import run
from tests.chaos.options import SERVICES, Options

SEED = 20_261_120


@pytest.mark.timeout(240)
async def test_nothing_is_lost_whoever_is_killed_while_streams_run(tmp_path: Path) -> None:
    options = Options(
        folder=tmp_path,
        seed=SEED,
        kills=6,
        streams=60,
        victims=(*((service, "kill") for service in SERVICES), ("merger", "stop")),
        gap_s=(0.2, 1.0),
        away=(1.1, 1.3),
    )
    result = await run(options)
    assert not result.violations, result.report
    assert all(hit.healed_at is not None for hit in result.journals.hits)
    assert len(result.journals.asked) == options.streams
