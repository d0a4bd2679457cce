"""Tests of configs from `name:key=value` text and from mappings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from enginewright.exporters.config_text import make_config, split_spec
from enginewright.runtime.errors import ExportError


@dataclass(frozen=True, kw_only=True)
class Config:
    path: str
    count: int = 1
    ratio: float = 0.5
    on: bool = False
    kind: Literal["a", "b"] = "a"
    limit: int | None = None


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("lora", "lora", {}),
        ("lora:", "lora", {}),
        ("lora:path=a/b", "lora", {"path": "a/b"}),
        ("lora:path=a,weight=0.5", "lora", {"path": "a", "weight": "0.5"}),
        ("lora:path=C:\\x=y", "lora", {"path": "C:\\x=y"}),
        ("lora:path=,", "lora", {"path": ""}),
        ("", "", {}),
    ],
)
def test_split(text: str, name: str, options: dict[str, str]) -> None:
    assert split_spec(text) == (name, options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora:path", r"'lora:path': got 'path', expected key=value after 'lora'"),
        ("lora:=x", r"got '=x', expected key=value"),
        ("lora:path=a,b", r"got 'b', expected key=value"),
        ("lora:path=a,path=b", r"key 'path' stands twice"),
    ],
)
def test_split_refuses(text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        split_spec(text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"path": "p"}, Config(path="p")),
        ({"path": "7", "count": "7", "ratio": "7"}, Config(path="7", count=7, ratio=7.0)),
        ({"path": "p", "count": -3, "ratio": 2, "on": True}, Config(path="p", count=-3, ratio=2.0, on=True)),
        ({"path": "p", "on": "true"}, Config(path="p", on=True)),
        ({"path": "p", "on": "False"}, Config(path="p")),
        ({"path": "p", "kind": "b"}, Config(path="p", kind="b")),
        ({"path": "p", "limit": "5"}, Config(path="p", limit=5)),
        ({"path": "p", "limit": "none"}, Config(path="p")),
        ({"path": "p", "limit": ""}, Config(path="p")),
        ({"path": "p", "limit": None}, Config(path="p")),
        ({"path": "p", "ratio": "1e-3"}, Config(path="p", ratio=0.001)),
    ],
)
def test_text_and_values_make_configs(options: dict[str, Any], expected: Config) -> None:
    assert make_config(Config, options, "it") == expected


KNOWN = "path, count, ratio, on, kind, limit"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "p", "cuont": "1"}, rf"^it: unknown key 'cuont'; known: {KNOWN}$"),
        ({}, rf"^it: key 'path' is missing; known keys: {KNOWN}$"),
        ({"path": "p", "count": "x"}, r"^it.count: got 'x', expected int"),
        ({"path": "p", "count": "1.5"}, r"^it.count: got '1.5', expected int"),
        ({"path": "p", "count": 1.5}, r"^it.count: got 1.5, expected int"),
        ({"path": "p", "count": ""}, r"^it.count: got '', expected int"),
        ({"path": "p", "ratio": "half"}, r"^it.ratio: got 'half', expected float"),
        ({"path": "p", "on": "yes"}, r"^it.on: got 'yes', expected bool"),
        ({"path": "p", "on": 1}, r"^it.on: got 1, expected bool"),
        ({"path": "p", "kind": "c"}, r"^it.kind: got 'c', expected one of 'a', 'b'"),
        ({"path": "p", "limit": "x"}, r"^it.limit: got 'x', expected int"),
        ({"path": 5}, r"^it.path: got 5, expected str"),
        ({"path": None}, r"^it.path: got None, expected str"),
    ],
)
def test_errors_name_the_key_and_the_known_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        make_config(Config, options, "it")
