"""Deterministic vectors in which texts that share words are near each other.

A hashed bag of words and letter trigrams (Weinberger et al. 2009, "Feature hashing"),
normalised to length 1. Trigrams bring inflected forms of a word together.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from functools import lru_cache
from hashlib import blake2b

_WORD = re.compile(r"\w+")
_TRIGRAM_WEIGHT = 0.35
_COMMON_WEIGHT = 0.15
_COMMON_WORDS = """
    a an and are as at be by can do does for from has have how i in is it its me my of on or that
    the their there this to was we were what when where which who why will with you your
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def embed(text: str, dimensions: int) -> list[float]:
    """A unit vector; the same text and dimensions always give the same one."""
    vector = [0.0] * dimensions
    for word in _WORD.findall(text.lower()) or [text]:
        for bucket, weight in _features(word):
            vector[bucket % dimensions] += weight
    length = math.sqrt(sum(value * value for value in vector))
    if not length:  # features of opposite sign can cancel out
        vector[_features(text)[0][0] % dimensions] = length = 1.0
    return [value / length for value in vector]


@lru_cache(maxsize=65_536)
def _features(word: str) -> tuple[tuple[int, float], ...]:
    scale = _COMMON_WEIGHT if word in _COMMON else 1.0
    padded = f"^{word}$"
    grams = {padded[at : at + 3] for at in range(len(padded) - 2)} if len(word) > 2 else set()
    weighed = [(word, scale)] + [(gram, scale * _TRIGRAM_WEIGHT) for gram in sorted(grams)]
    return tuple(_hashed(feature, weight) for feature, weight in weighed)


def _hashed(feature: str, weight: float) -> tuple[int, float]:
    number = int.from_bytes(blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest())
    return number >> 1, weight if number & 1 else -weight


def as_base64(vector: list[float]) -> str:
    """Little-endian float32, as the OpenAI SDK decodes it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
