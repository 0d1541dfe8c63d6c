"""A provider that was only given by its URL must answer a request that names no model."""

import pytest

from deploy.mesh.default_model import choose, first_model
from services.simulator.service import Simulator, SimulatorConfig
from shared.providers import Provider, Providers


def providers(**fields: object) -> Providers:
    return Providers((Provider(name="p", **fields),), {})  # type: ignore[arg-type]


async def test_the_first_model_that_the_provider_lists_is_taken_with_its_key() -> None:
    config = SimulatorConfig(models=("house-embed", "house-chat"), api_keys=frozenset({"k"}))
    async with Simulator(config) as upstream:
        given = providers(base_url=upstream.base_url, api_key="k")
        assert await first_model(given) == "house-chat"
        refused = providers(base_url=upstream.base_url)
        assert await first_model(refused) is None


async def test_a_model_in_the_providers_file_needs_no_question() -> None:
    given = providers(base_url="http://127.0.0.1:1/v1", models=("llama-*", "qwen"))
    assert await first_model(given) == "qwen"


async def test_a_provider_that_cannot_be_asked_leaves_it_open() -> None:
    assert await first_model(providers(base_url="http://127.0.0.1:1/v1")) is None
    assert await first_model(Providers((), {})) is None


@pytest.mark.parametrize(
    ("models", "chosen"),
    [
        (["text-embedding-3", "gpt"], "gpt"),
        (["only-embed"], "only-embed"),
        ([], None),
    ],
)
def test_models_that_do_not_chat_come_last(models: list[str], chosen: str | None) -> None:
    assert choose(models) == chosen
