"""Embeddings are repeatable unit vectors in which shared words mean nearness."""

from __future__ import annotations

import base64
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.embeddings import as_base64, embed


def near(one: str, other: str) -> float:
    return sum(a * b for a, b in zip(embed(one, 512), embed(other, 512), strict=True))


@given(st.text(min_size=1, max_size=80), st.integers(1, 300))
def test_every_text_has_one_unit_vector_of_the_size_asked_for(text: str, dimensions: int) -> None:
    vector = embed(text, dimensions)
    assert len(vector) == dimensions
    assert math.isclose(math.hypot(*vector), 1.0)
    assert vector == embed(text, dimensions)


def test_texts_that_share_words_are_nearer_than_texts_that_do_not() -> None:
    question = "How do I sort a linked list?"
    assert near(question, "Sorting linked lists in place") > 0.4
    assert near(question, "The harbour freezes in winter") < 0.15
    assert near(question, question) == pytest.approx(1.0)


def test_common_words_bring_nothing_together() -> None:
    assert near("What is the tide?", "What is the loan?") < 0.4


def test_base64_is_little_endian_float32() -> None:
    vector = embed("hello", 8)
    unpacked = struct.unpack("<8f", base64.b64decode(as_base64(vector)))
    assert unpacked == pytest.approx(vector, abs=1e-6)
