"""The smallest plausible value that conforms to a JSON schema. Pure.

Covers what structured-output and tool schemas use: type, enum, const, properties, required,
items, length and number bounds, format, pattern (by trying), anyOf, oneOf, allOf, local $ref.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from services.simulator.errors import bad_request

_DEEP = 4
_TOO_DEEP = 40
_FORMATS = {
    "date": "2025-01-31",
    "date-time": "2025-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1M",
    "email": "ada@example.org",
    "hostname": "example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.org/",
    "url": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_GUESSES = ("a", "A", "abc", "Abc", "ABC", "0", "1", "12", "123", "12345", "abc123", "A1", "AB12",
            "1.0", "1.0.0", "#000000", "+15550100000", "EUR", "en", "en-US", "a-b", "a_b",
            *_FORMATS.values())  # fmt: skip


def example(schema: Mapping[str, Any], text: str = "") -> Any:
    """A conforming value; free strings say `text`, so that the answer shows its question.

    Raises ApiError (400) for a schema that can only be met by endless nesting.
    """
    return _Maker(schema, text).value(schema, "value", 0, 0)


class _Maker:
    def __init__(self, root: Mapping[str, Any], text: str) -> None:
        self._root = root
        self._text = text

    def value(self, schema: Any, name: str, depth: int, nth: int) -> Any:
        """`nth` tells the items of one array apart (uniqueItems)."""
        if depth > _TOO_DEEP:
            raise bad_request("Invalid schema: it nests without end; make the cycle optional.")
        schema = self._settled(schema, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][nth % len(schema["enum"])]
        kind = _type(schema)
        match kind:
            case "object":
                made: Any = self._object(schema, depth)
            case "array":
                made = self._array(schema, name, depth)
            case "integer" | "number":
                made = _number(schema, kind == "integer", nth)
            case "boolean":
                made = nth % 2 == 0
            case "null":
                made = None
            case _:
                made = self._string(schema, name, nth)
        return made

    def _settled(self, schema: Any, depth: int) -> dict[str, Any]:
        """References followed, alternatives chosen: null when deep, else the first that is not."""
        if not isinstance(schema, Mapping):
            return {}
        merged: dict[str, Any] = dict(schema)
        for _ in range(_TOO_DEEP):
            if "$ref" in merged:
                meant = self._resolve(merged.pop("$ref"))
                merged = {**merged, **meant}
            elif "allOf" in merged:
                for part in merged.pop("allOf"):
                    merged = _joined(merged, self._settled(part, depth))
            elif "anyOf" in merged or "oneOf" in merged:
                options = merged.pop("anyOf", None) or merged.pop("oneOf")
                nulls = [option for option in options if _is_null(option)]
                others = [option for option in options if not _is_null(option)]
                chosen = nulls if nulls and (depth >= _DEEP or not others) else others
                merged = _joined(merged, self._settled(chosen[0], depth) if chosen else {})
            else:
                return merged
        raise bad_request("Invalid schema: '$ref' goes round in a circle.")

    def _resolve(self, ref: Any) -> Mapping[str, Any]:
        node: Any = self._root
        for step in str(ref).removeprefix("#").strip("/").split("/"):
            if step:
                key = step.replace("~1", "/").replace("~0", "~")
                node = node.get(key) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            raise bad_request(f"Invalid schema: '$ref' {ref!r} leads nowhere; define it in $defs.")
        return node

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or ([] if depth >= _DEEP else list(properties))
        names = [name for name in properties if name in required]
        names += [name for name in required if name not in properties]
        return {name: self.value(properties.get(name), name, depth + 1, 0) for name in names}

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        least = int(schema.get("minItems") or 0)
        size = max(least, 0 if depth >= _DEEP else 1)
        if "maxItems" in schema:
            size = min(size, int(schema["maxItems"]))
        firsts = schema.get("prefixItems") or []
        return [
            self.value(firsts[at] if at < len(firsts) else schema.get("items"), name, depth + 1, at)
            for at in range(max(size, len(firsts) if least else size))
        ]

    def _string(self, schema: dict[str, Any], name: str, nth: int) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        value = self._text or name.replace("_", " ")
        if nth:
            value = f"{nth + 1} {value}"
        if schema.get("pattern"):
            pattern = str(schema["pattern"])
            value = next((guess for guess in (value, *_GUESSES) if _matches(pattern, guess)), value)
        least, most = int(schema.get("minLength") or 0), schema.get("maxLength")
        if len(value) < least:
            value = (value + " ") * (least // (len(value) + 1) + 1)
            value = value[:least]
        return value if most is None else value[: int(most)]


def _type(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind is None:
        return "object" if "properties" in schema else "array" if "items" in schema else "string"
    return str(kind)


def _is_null(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "null"


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    joined = {**one, **other}
    if "properties" in one and "properties" in other:
        joined["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        joined["required"] = [*one["required"], *other["required"]]
    return joined


def _number(schema: Mapping[str, Any], whole: bool, nth: int) -> int | float:
    step = schema.get("multipleOf") or 1
    low = schema.get("minimum", -math.inf)
    above = schema.get("exclusiveMinimum", -math.inf)
    high = schema.get("maximum", math.inf)
    below = schema.get("exclusiveMaximum", math.inf)
    value = step * (1 + nth)
    if not (low <= value <= high and above < value < below):
        floor = max(low, above)
        if floor > -math.inf:
            value = step * (math.ceil(floor / step) + nth)
            value += step if value <= above else 0
        else:
            ceiling = min(high, below)
            value = step * (math.floor(ceiling / step) - nth)
            value -= step if value >= below else 0
        if not whole and not (low <= value <= high and above < value < below):
            value = (max(low, above) + min(high, below)) / 2
    return int(value) if whole else value


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.search(pattern, value) is not None
    except re.error:
        return False
