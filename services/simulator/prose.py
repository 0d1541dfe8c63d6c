"""The words of an answer: deterministic English that uses what it was given. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain

import msgspec

from services.simulator.reading import Passage, Reading, ToolResult
from services.simulator.tokens import tokenize

_WORD = re.compile(r"[^\W\d_][\w'-]{3,}")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_DULL_WORDS = """
    about after also answer been before being between could does each from give have into just like
    make many more most much only other over please same should some such tell than that their them
    then there these they this those under very want well were what when where which while will
    with would your
"""
_DULL = frozenset(_DULL_WORDS.split())
_OPENERS = (
    'You asked: "{q}" Here is what I can say about it.',
    'The question was: "{q}" Let me go through it step by step.',
    'To your question "{q}" there is a short answer and a longer one.',
    'You wrote: "{q}" I will take it in order.',
)
_FILLERS = (
    "The main point about {a} is how it works together with {b}.",
    "In practice, {a} matters most when {b} changes under load.",
    "It helps to look at {a} first and to come back to {b} later.",
    "Many teams start with {a} and find out that {b} was the harder part.",
    "A small test with {a} shows quickly whether {b} behaves as expected.",
    "There is a trade-off here: more {a} usually means less room for {b}.",
    "If {a} is unclear, write down what you know about {b} and measure the rest.",
    "The usual mistake is to treat {a} as if it were the same thing as {b}.",
    "Seen from the side of {b}, the part played by {a} is easy to explain.",
    "Keep {a} simple, name its limits, and let {b} carry the details.",
    "What remains is a matter of taste, though {a} should never depend on {b} alone.",
    "As a rule of thumb, check {a} twice before you touch {b}.",
    "None of this is final, because {a} and {b} both change with time.",
    "An example makes it plain: take away {a}, and {b} no longer holds.",
    "So the next step is to compare {a} with {b} under the same conditions.",
)
_THOUGHTS = (
    "The user wants to know about {a}.",
    "I should check what I was given about {b} before I answer.",
    "First I separate {a} from {b}.",
    "That leaves the question how {a} depends on {b}.",
    "I can keep the answer short and come back to {b} at the end.",
    "Nothing here contradicts what was said about {a}.",
)
_TOPICS = ("the question", "the details", "the context", "the outcome")


def seed_of(*parts: object) -> int:
    """A 64-bit seed that depends on every part and on nothing else (not on the process)."""
    digest = blake2b(repr(parts).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest)


def answer_tokens(reading: Reading, seed: int, tokens: int, exact: bool) -> tuple[str, ...]:
    """About `tokens` tokens, or exactly that many. Not exact: the last sentence ends, and what
    the answer must say (question, passages, earlier turn) is never cut."""
    start = _must_say(reading, seed)
    return _filled(start, _sentences(_FILLERS, reading, seed), tokens, exact)


def reasoning_tokens(reading: Reading, seed: int, tokens: int) -> tuple[str, ...]:
    return _filled([], _sentences(_THOUGHTS, reading, seed + 1), tokens, True)


def excerpt(text: str, words: int = 14) -> str:
    """The first words of a text, on one line."""
    parts = text.split()
    return " ".join(parts[:words]) + ("…" if len(parts) > words else "")


def topics(text: str) -> list[str]:
    """The words of a text that carry meaning, each once, in order."""
    seen = dict.fromkeys(word.strip("'-").lower() for word in _WORD.findall(text))
    return [word for word in seen if word not in _DULL]


def _must_say(reading: Reading, seed: int) -> list[str]:
    facts = dict(reading.facts)
    name = facts.pop("name", "")
    sentences: list[str] = []
    question = excerpt(reading.question, 40)
    if question:
        opener = _OPENERS[seed % len(_OPENERS)].format(q=question)
        sentences.append(f"{name}, {opener[0].lower()}{opener[1:]}" if name else opener)
    elif name:
        sentences.append(f"{name}, there was no question, so I will speak in general.")
    sentences.extend(map(_tool_sentence, reading.tool_results))
    if reading.earlier:
        sentences.append(
            f'Earlier you said "{excerpt(reading.earlier[-1])}", and this follows on from it.'
        )
    sentences.extend(
        f'Passage [{passage.number}] says: "{fragment}" [{passage.number}].'
        for passage, fragment in _cited(reading)
    )
    if facts:
        key, value = next(iter(facts.items()))
        sentences.append(f"I keep in mind that your {key} is {value}.")
    return sentences


def _cited(reading: Reading, most: int = 3) -> list[tuple[Passage, str]]:
    """The passages nearest to the question with the sentence of each that is nearest to it."""
    wanted = set(topics(reading.question))

    def shared(text: str) -> int:
        return len(wanted.intersection(topics(text)))

    best = sorted(reading.passages, key=lambda passage: (-shared(passage.text), passage.number))
    chosen = sorted(best[:most], key=lambda passage: passage.number)
    return [
        (passage, excerpt(max(_SENTENCE.split(passage.text), key=shared)).rstrip(" ."))
        for passage in chosen
    ]


def _tool_sentence(result: ToolResult) -> str:
    try:
        value = msgspec.json.decode(result.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        value = result.content
    if isinstance(value, dict):
        fields = ", ".join(f"{key} is {_plain(field)}" for key, field in list(value.items())[:4])
        return f"According to {result.name}, {fields or 'there is nothing to report'}."
    return f'According to {result.name}, the result is "{excerpt(_plain(value), 30)}".'


def _plain(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _filled(start: list[str], filler: Iterator[str], tokens: int, exact: bool) -> tuple[str, ...]:
    said: list[str] = []
    for at, sentence in enumerate(chain(start, filler)):
        if len(said) >= tokens and (exact or at >= len(start)):
            break
        lead = "" if not said else "\n\n" if at % 6 == 0 else " "
        said.extend(tokenize(lead + sentence))
    if exact and len(said) > tokens:
        said[max(tokens - 1, 0) :] = ["."] if tokens else []
    return tuple(said)


def _sentences(templates: tuple[str, ...], reading: Reading, seed: int) -> Iterator[str]:
    """Endless; a template comes again only after all others."""
    rng = random.Random(seed)  # noqa: S311 - repeatable variety, not a secret
    about = " ".join([reading.question, *(passage.text for passage in reading.passages[:3])])
    words = [*topics(about)[:24], *_TOPICS]
    while True:
        for template in rng.sample(templates, len(templates)):
            a, b = rng.sample(words, 2)
            sentence = template.format(a=a, b=b)
            yield sentence[0].upper() + sentence[1:]
