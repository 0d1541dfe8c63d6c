"""The journal tells what became of each request, and forgets the oldest first."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.simulator.faults import FAULTS
from services.simulator.journal import Entry, Journal, kept_headers
from services.simulator.knobs import KNOWN


def opened(journal: Journal, id: str = "a", body: bytes = b"{}") -> Entry:
    return journal.open(id=id, path="/p", headers={}, body=body, started_s=1.0)


def test_the_oldest_entries_go_first_and_are_counted() -> None:
    journal = Journal(max_entries=2, max_bytes=1_000)
    for id in "abc":
        opened(journal, id)
    assert [entry.id for entry in journal] == ["b", "c"]
    assert journal.dropped == 1


def test_bodies_together_stay_within_their_limit() -> None:
    journal = Journal(max_entries=100, max_bytes=100)
    for id in "abcd":
        opened(journal, id, b"x" * 40)
    assert [entry.id for entry in journal] == ["c", "d"]


def test_the_first_end_counts() -> None:
    journal = Journal(10, 1_000)
    entry = opened(journal)
    journal.close(entry, "finished", 2.0)
    journal.close(entry, "client_closed", 3.0)
    assert (entry.ended, entry.finished_s, entry.aborted, entry.aborted_s) == (
        "finished", 2.0, False, None,
    )  # fmt: skip


def test_an_entry_shows_its_body_as_it_came() -> None:
    journal = Journal(10, 1_000)
    assert opened(journal, body=b'{"a":1}').public()["body"] == {"a": 1}
    assert opened(journal, body=b"{nope").public()["body"] == "{nope"


def test_keys_are_never_kept() -> None:
    given = {"Authorization": "Bearer s3cret", "Cookie": "c", "X-Braid-Attempt": "2"}
    assert kept_headers(given) == {"x-braid-attempt": "2"}


async def test_a_waiter_sees_the_change_it_waits_for() -> None:
    journal = Journal(10, 1_000)
    entry = opened(journal)
    waiter = asyncio.create_task(journal.until(lambda seen: seen.tokens_sent > 0))
    journal.sent(entry, 1, 2.0)
    assert await waiter is entry


async def test_a_waiter_gives_up_at_its_deadline() -> None:
    with pytest.raises(TimeoutError):
        await Journal(10, 1_000).until(lambda _: True, timeout_s=0.01)


def test_the_readme_names_every_fault_and_every_key() -> None:
    readme = Path(__file__).parents[2] / "services" / "simulator" / "README.md"
    page = readme.read_text(encoding="utf-8")
    for name, fault in FAULTS.items():
        assert f"| `{name}` | {fault.does} |" in page
    for key in KNOWN:
        assert f"`{key}`" in page
