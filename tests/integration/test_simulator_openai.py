"""The simulator as the official OpenAI client sees it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from services.simulator.service import Simulator, SimulatorConfig

HI: Any = [{"role": "user", "content": "Why is the sky blue?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    config = SimulatorConfig(ttft_s=0, gap_s=0, embedding_dimensions=256)
    async with Simulator(config) as simulator:
        yield simulator


@pytest.fixture
async def client(upstream: Simulator) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=upstream.base_url, api_key="any", max_retries=0) as made:
        yield made


async def test_an_answer_in_one_body(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="sim-echo", messages=HI)
    (choice,) = answer.choices
    assert '"Why is the sky blue?"' in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert answer.model == "sim-echo"
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 80


async def test_a_stream_says_the_same_as_one_body(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="sim-echo", messages=HI)
    stream = await client.chat.completions.create(
        model="sim-echo", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(deltas) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == sum(map(bool, deltas))


async def test_two_choices_travel_side_by_side(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="sim-echo", messages=HI, n=2, stream=True)
    texts, finishes = {0: "", 1: ""}, {}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert finishes == {0: "stop", 1: "stop"}
    assert texts[0] != texts[1]
    whole = await client.chat.completions.create(model="sim-echo", messages=HI, n=2)
    assert [choice.message.content for choice in whole.choices] == [texts[0], texts[1]]


async def test_a_tool_loop_goes_round_once_and_uses_the_result(client: AsyncOpenAI) -> None:
    said: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
    async with client.chat.completions.stream(
        model="sim-echo", messages=said, tools=TOOLS
    ) as stream:
        first = await stream.get_final_completion()
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    said += [
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": "{}"},
                }
            ],
        },
        {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "grey"}'},
    ]
    second = await client.chat.completions.create(model="sim-echo", messages=said, tools=TOOLS)
    assert "According to get_weather, sky is grey." in (second.choices[0].message.content or "")


async def test_structured_output_conforms_to_its_schema(client: AsyncOpenAI) -> None:
    schema: Any = {
        "type": "json_schema",
        "json_schema": {
            "name": "reply",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "title": {"type": "string"},
                    "score": {"type": "integer", "minimum": 3},
                },
                "required": ["title", "score"],
                "additionalProperties": False,
            },
        },
    }
    answer = await client.chat.completions.create(
        model="sim-echo", messages=HI, response_format=schema
    )
    assert json.loads(answer.choices[0].message.content or "") == {
        "title": "Why is the sky blue?",
        "score": 3,
    }


async def test_reasoning_comes_before_the_answer(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="sim-reason", messages=HI, stream=True)
    kinds: list[str] = []
    async for chunk in stream:
        delta = chunk.choices[0].delta.model_dump(exclude_none=True)
        kinds += [kind for kind in ("reasoning_content", "content") if delta.get(kind)]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"reasoning_content", "content"}


async def test_the_body_headers_and_model_name_all_reach_the_simulator(client: AsyncOpenAI) -> None:
    ways: list[Any] = [
        {"model": "sim-echo", "extra_body": {"sim": {"tokens": 7}}},
        {"model": "sim-echo", "extra_headers": {"x-sim-tokens": "7"}},
        {"model": "sim-echo?tokens=7"},
    ]
    for way in ways:
        answer = await client.chat.completions.create(messages=HI, **way)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 7
        assert answer.model == "sim-echo"


async def test_markers_name_stream_branch_and_attempt(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="sim-echo?marker&tokens=2",
        messages=HI,
        extra_headers={"x-braid-stream": "S1", "x-braid-branch": "0", "x-braid-attempt": "3"},
    )
    assert answer.choices[0].message.content == "S1|0|3|0 S1|0|3|1 "


async def test_embeddings_bring_the_matching_text_nearest(client: AsyncOpenAI) -> None:
    texts = ["How tall are oak trees?", "Oak trees grow tall", "Ships carry freight"]
    packed = await client.embeddings.create(model="sim-embed", input=texts)
    question, oak, ships = [item.embedding for item in packed.data]
    assert len(question) == 256

    def near(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert near(question, oak) > near(question, ships) + 0.2
    plain = await client.embeddings.create(
        model="sim-embed", input=texts, encoding_format="float", dimensions=256
    )
    assert plain.data[1].embedding == pytest.approx(oak, abs=1e-6)


async def test_models_are_listed_and_found(client: AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert listed == ["sim-echo", "sim-reason", "sim-embed"]
    assert (await client.models.retrieve("sim-echo")).owned_by == "simulator"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-0")


async def test_an_unknown_model_is_not_found_unless_every_name_is_accepted(
    client: AsyncOpenAI,
) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-0", messages=HI)
    assert missing.value.code == "model_not_found"
    config = SimulatorConfig(ttft_s=0, gap_s=0, models=())
    async with (
        Simulator(config) as lenient,
        AsyncOpenAI(base_url=lenient.base_url, api_key="any", max_retries=0) as other,
    ):
        assert (await other.chat.completions.create(model="gpt-0", messages=HI)).model == "gpt-0"


async def test_bad_input_is_a_400_that_names_the_parameter(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="sim-echo", messages=HI, max_tokens=0)
    assert refused.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="Known keys: ttft_s"):
        await client.chat.completions.create(model="sim-echo?speed=9", messages=HI)


async def test_a_wrong_key_is_unauthorised_and_not_repeated_in_the_answer() -> None:
    config = SimulatorConfig(ttft_s=0, gap_s=0, api_keys=frozenset({"right"}))
    async with Simulator(config) as upstream:
        async with AsyncOpenAI(base_url=upstream.base_url, api_key="wr0ng", max_retries=0) as wrong:
            with pytest.raises(openai.AuthenticationError) as refused:
                await wrong.chat.completions.create(model="sim-echo", messages=HI)
            assert refused.value.code == "invalid_api_key"
            assert "wr0ng" not in refused.value.message
            with pytest.raises(openai.AuthenticationError):
                await wrong.models.list()
        async with AsyncOpenAI(base_url=upstream.base_url, api_key="right", max_retries=0) as good:
            assert (await good.chat.completions.create(model="sim-echo", messages=HI)).choices


async def test_the_same_request_has_the_same_answer_in_another_process_life() -> None:
    texts = []
    for _ in range(2):
        async with (
            Simulator(SimulatorConfig(ttft_s=0, gap_s=0)) as upstream,
            AsyncOpenAI(base_url=upstream.base_url, api_key="any", max_retries=0) as client,
        ):
            answer = await client.chat.completions.create(model="sim-echo", messages=HI, seed=5)
            texts.append(answer.choices[0].message.content)
    assert texts[0] == texts[1]
