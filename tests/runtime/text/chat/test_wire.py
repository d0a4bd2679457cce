"""Tests of the messages to the processes that render: a value arrives as it was, and half a message is no message."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.text.chat import wire

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(st.characters()))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(
            st.one_of(st.text(max_size=3), st.integers(), st.none(), st.tuples(st.text())), inner, max_size=3
        ),
    ),
    max_leaves=12,
)


def through(value: Any) -> Any:
    return wire.unpack(wire.receive(io.BytesIO(wire.pack(value)).read))


def shape(value: Any) -> Any:
    """The value with the types of all its parts, which equality does not tell apart: 1, 1.0 and True."""
    if isinstance(value, dict):
        return [(shape(key), shape(item)) for key, item in value.items()]
    return (type(value), [shape(item) for item in value] if isinstance(value, list | tuple) else value)


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(VALUES)
def test_a_value_arrives_as_it_was(value: Any) -> None:
    assert shape(through(value)) == shape(value)


@pytest.mark.parametrize("value", ["\ud800", {"\0tuple": [1]}, {"\0pairs": []}, {1: {(2, 3): ("x",)}}, math.inf, ()])
def test_odd_values_arrive_as_they_were(value: Any) -> None:
    assert shape(through(value)) == shape(value)
    assert math.isnan(through(math.nan))


def test_messages_come_one_after_another_in_any_pieces() -> None:
    stream = io.BytesIO(b"".join(wire.pack(each) for each in ([1], "two", {"three": 3})))
    read = lambda size: stream.read(min(size, 3))  # noqa: E731
    assert [wire.unpack(wire.receive(read)) for _ in range(3)] == [[1], "two", {"three": 3}]
    with pytest.raises(EOFError):
        wire.receive(read)
    with pytest.raises(EOFError):
        wire.receive(io.BytesIO(wire.pack("cut off")[:-1]).read)
