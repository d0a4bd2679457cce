"""Tests of strict JSON: every wrong key and type is named with its path."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from enginewright.runtime.artifact.strict_json import parse


@dataclass(frozen=True, kw_only=True)
class Leaf:
    name: str
    sizes: tuple[int | str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tree:
    count: int
    ratio: float = 0.5
    on: bool = False
    kind: Literal["a", "b"] = "a"
    note: str | None = None
    leaves: tuple[Leaf, ...] = ()
    named: dict[str, Leaf] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


WHOLE = Tree(
    count=3,
    ratio=0.25,
    on=True,
    kind="b",
    note="n",
    leaves=(Leaf(name="x", sizes=(1, "T")), Leaf(name="y")),
    named={"z": Leaf(name="z")},
    extra={"any": [1, {"thing": None}]},
)


@pytest.mark.parametrize("tree", [WHOLE, Tree(count=0)])
def test_json_round_trip(tree: Tree) -> None:
    assert parse(Tree, json.loads(json.dumps(dataclasses.asdict(tree))), "tree") == tree


def test_whole_numbers_are_floats_where_floats_are_expected() -> None:
    ratio = parse(Tree, {"count": 1, "ratio": 2}, "tree").ratio
    assert ratio == 2.0 and type(ratio) is float


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "tree: got list, expected an object"),
        ({}, "tree: key 'count' is missing"),
        ({"count": 1, "cuont": 2}, "tree: unknown key 'cuont'; known: count, ratio"),
        ({"count": "1"}, "tree.count: got '1', expected int"),
        ({"count": True}, "tree.count: got True, expected int"),
        ({"count": 1.0}, "tree.count: got 1.0, expected int"),
        ({"count": None}, "tree.count: got None, expected int"),
        ({"count": 1, "on": 1}, "tree.on: got 1, expected bool"),
        ({"count": 1, "ratio": "x"}, "tree.ratio: got 'x', expected float"),
        ({"count": 1, "kind": "c"}, "tree.kind: got 'c', expected one of 'a', 'b'"),
        ({"count": 1, "kind": ["a"]}, "tree.kind: got ['a'], expected one of 'a', 'b'"),
        ({"count": 1, "note": 5}, "tree.note: got 5, expected str"),
        ({"count": 1, "leaves": {}}, "tree.leaves: got {}, expected"),
        ({"count": 1, "leaves": [{"name": "x"}, {}]}, "tree.leaves[1]: key 'name' is missing"),
        ({"count": 1, "leaves": [{"name": "x", "sizes": [1, 2.5]}]}, "tree.leaves[0].sizes[1]: got 2.5"),
        ({"count": 1, "named": {"z": {"name": 1}}}, "tree.named.z.name: got 1, expected str"),
        ({"count": 1, "named": []}, "tree.named: got [], expected"),
    ],
)
def test_errors_name_the_place(raw: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(Tree, raw, "tree")
    assert str(caught.value).startswith(message)


@dataclass(frozen=True)
class Checked:
    """A class with a check of its own, which names the field alone."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size: got {self.size}, expected 0 or more")


@dataclass(frozen=True)
class Holder:
    parts: tuple[Checked, ...]


def test_checks_of_a_class_name_the_place_too() -> None:
    with pytest.raises(ValueError) as caught:
        parse(Holder, {"parts": [{"size": 1}, {"size": -1}]}, "holder")
    assert str(caught.value) == "holder.parts[1].size: got -1, expected 0 or more"
