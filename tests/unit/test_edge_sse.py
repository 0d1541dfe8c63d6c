"""The native dialect: what goes over the wire, byte for byte, and what can never go over it."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.edge.sse import NativeEvents, Open, open_event
from shared.events import (
    BranchDone,
    BranchFailed,
    BranchReset,
    BranchStarted,
    ContextLoaded,
    Delta,
    Done,
    Event,
    Failed,
    Stats,
    ToolFragment,
    Usage,
)

SID = "A" * 22


def encode(*events: Event) -> list[bytes]:
    dialect = NativeEvents()
    return [dialect.encode(n, event) for n, event in enumerate(events, 1)]


def data_of(block: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(block.split(b"data: ", 1)[1])
    return event


def test_the_opening_has_no_id_so_that_it_cannot_move_a_readers_position() -> None:
    assert open_event(Open(SID, "s", 4), 1500) == (
        b'retry: 1500\ndata: {"type":"open","stream_id":"AAAAAAAAAAAAAAAAAAAAAA",'
        b'"session_id":"s","position":4,"from":"log"}\n\n'
    )


def test_an_event_is_its_number_and_its_json() -> None:
    assert encode(Done()) == [b'id: 1\ndata: {"type":"done"}\n\n']


def test_a_delta_says_which_model_speaks() -> None:
    assert encode(BranchStarted(branch=0, model="m"), Delta(0, text="Hi\n"))[1] == (
        b'id: 2\ndata: {"type":"delta","branch":0,"model":"m","text":"Hi\\n"}\n\n'
    )


def test_where_there_are_sections_a_delta_says_its_section() -> None:
    started = BranchStarted(branch=1, section="summary", model="m")
    assert encode(started, Delta(1, text="x"))[1] == (
        b'id: 2\ndata: {"type":"delta","branch":1,"section":"summary","text":"x"}\n\n'
    )


def test_reasoning_and_tool_fragments_are_deltas_too() -> None:
    blocks = encode(
        BranchStarted(branch=0, model="m"),
        Delta(0, reasoning="hm"),
        Delta(0, tool_call=ToolFragment(0, "c1", "find", '{"q":')),
    )
    assert data_of(blocks[1])["reasoning"] == "hm"
    assert data_of(blocks[2])["tool_call"] == {
        "index": 0,
        "id": "c1",
        "name": "find",
        "arguments": '{"q":',
    }


def test_a_reader_who_resumes_after_the_start_of_a_branch_still_learns_who_speaks() -> None:
    started = BranchStarted(branch=0, model="m")
    resumed = NativeEvents()
    resumed.skip(started)
    resumed.skip(Delta(0, text="a"))
    assert resumed.encode(3, Delta(0, text="b")) == encode(started, Done(), Delta(0, text="b"))[2]


def test_every_event_of_a_branch_carries_its_name() -> None:
    blocks = encode(
        BranchStarted(branch=0, section="s", model="m"),
        BranchReset(branch=0, attempt=1, reason="worker_lost", discarded_chars=3),
        BranchDone(branch=0, finish_reason="stop", model="fallback"),
        BranchFailed(branch=0, code="internal", message="no"),
    )
    assert [data_of(block).get("section") for block in blocks] == ["s", "s", None, "s"]
    assert data_of(blocks[2])["model"] == "fallback"


def test_the_branches_do_not_borrow_each_others_names() -> None:
    blocks = encode(
        BranchStarted(branch=0, model="x"),
        BranchStarted(branch=1, model="y"),
        Delta(1, text="1"),
        Delta(0, text="0"),
    )
    assert [data_of(block)["model"] for block in blocks[2:]] == ["y", "x"]


texts = st.text()
events = st.one_of(
    st.builds(Delta, st.integers(0, 3), text=texts, reasoning=texts),
    st.builds(BranchStarted, branch=st.integers(0, 3), section=st.none() | texts, model=texts),
    st.builds(
        BranchFailed, branch=st.integers(0, 3), code=texts, message=texts, model=st.none() | texts
    ),
    st.builds(Failed, code=texts, message=texts),
    st.builds(ContextLoaded, degraded=st.lists(texts)),
    st.just(
        Stats(
            branches=1,
            succeeded=1,
            failed=0,
            chunks=1,
            chars=1,
            ttft_ms=None,
            duration_ms=1,
            chunks_per_s=1,
            chars_per_s=1,
            usage=Usage(1, 1, 2, "upstream"),
        )
    ),
)


@given(st.lists(events, max_size=6))
def test_no_text_can_break_out_of_its_event(told: list[Event]) -> None:
    for n, block in enumerate(encode(*told), 1):
        assert block.endswith(b"\n\n")
        assert b"\r" not in block
        lines = block[:-2].split(b"\n")
        assert lines[0] == b"id: %d" % n
        assert len(lines) == 2
        assert isinstance(json.loads(lines[1].removeprefix(b"data: ")), dict)
