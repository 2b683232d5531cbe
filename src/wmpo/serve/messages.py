"""Messages from the browser: JSON of known shape, or a refusal in one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

LARGEST = 16384
"""Bytes of a message; the longest that the page sends has about 200."""


class Refused(Exception):
    """What the browser is told instead of an answer: one sentence and an HTTP status."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class Message:
    """The fields of one message. Each getter checks type and range, and raises :class:`Refused` naming the field."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def _take(self, name: str) -> Any:
        if name not in self._fields:
            raise Refused(f"the field {name} is missing")
        return self._fields[name]

    def integer(self, name: str, low: int, high: int) -> int:
        value = self._take(name)
        if type(value) is not int or not low <= value <= high:
            raise Refused(f"{name} must be an integer in {low}..{high}, not {_shown(value)}")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        return _number(name, self._take(name), low, high)

    def numbers(self, name: str, count: int, low: float, high: float) -> list[float]:
        values = self._take(name)
        if not isinstance(values, list) or len(values) != count:
            raise Refused(f"{name} must be a list of {count} numbers, not {_shown(values)}")
        return [_number(name, value, low, high) for value in values]

    def choice(self, name: str, options: Sequence[str]) -> str:
        value = self._take(name)
        if value not in options:
            raise Refused(f"{name} must be one of {', '.join(options)}, not {_shown(value)}")
        return value

    def text(self, name: str) -> str:
        value = self._take(name)
        if not isinstance(value, str) or len(value) > 100:
            raise Refused(f"{name} must be a short text, not {_shown(value)}")
        return value


def read_message(body: bytes, known: Container[str]) -> Message:
    """A JSON object with no other fields than the ``known`` ones."""
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # decoding errors are ValueErrors too
        raise Refused("a message is a JSON object, and this is no JSON") from error
    if not isinstance(found, dict):
        raise Refused(f"a message is a JSON object, not {_shown(found)}")
    for name in found:
        if name not in known:
            raise Refused(f"this message has no field {_shown(name)}")
    return Message(found)


def _number(name: str, value: Any, low: float, high: float) -> float:
    if type(value) not in (int, float) or not low <= value <= high or not math.isfinite(value):
        raise Refused(f"{name} must be a number in {low:g}..{high:g}, not {_shown(value)}")
    return float(value)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _shown(value: Any) -> str:
    """A value of anyone's, short enough to be repeated."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
