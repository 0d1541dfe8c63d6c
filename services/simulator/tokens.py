"""Text to tokens that look like a real tokenizer's: words with their leading space,
punctuation apart, long words in pieces. Joining the tokens gives the text back exactly."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r" ?[^\W\d_]{1,9}"  # the head of a word, with the space before it
    r"| ?\d{1,3}"
    r"| ?(?:[^\w\s]{1,4}|_+)"
    r"|\s+?(?= ?\S)|\s+"
)
_find = _TOKEN.findall


def tokenize(text: str) -> list[str]:
    return _find(text)


def count(text: str) -> int:
    return len(_find(text))
