"""`enginewright methods`: every method, with what it gives, its options, and a page that exists."""

from __future__ import annotations

import dataclasses
import json

import pytest

from enginewright.exporters.methods.registry import find_methods
from enginewright.runtime import cli
from tests.support.paths import ROOT

Capture = pytest.CaptureFixture[str]


def test_every_method_is_described(capsys: Capture) -> None:
    assert cli.main(["methods", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described.keys() == find_methods().keys()
    for name, each in described.items():
        assert each["gives"] and not each["gives"].endswith("."), name
        assert (ROOT / each["page"]).is_file(), name
        config = find_methods()[name].config
        assert config is not None or each["tuners"], name
        fields = [] if config is None else [field.name for field in dataclasses.fields(config)]
        assert list(each["options"]) == fields
        undescribed = [option for option, about in each["options"].items() if not about["meaning"]]
        assert not undescribed, f"{name}: say in the docstring of Config what they mean"


def test_the_list_and_one_methods_options(capsys: Capture) -> None:
    assert cli.main(["methods"]) == 0
    listing = capsys.readouterr().out
    assert all(any(line.startswith(name) for line in listing.splitlines()) for name in find_methods())
    assert "nsru, reasonalloc, tada: by `enginewright tune` alone" in listing
    assert cli.main(["methods", "kvarn"]) == 0
    shown = capsys.readouterr().out
    assert "k_bits (default 4): " in shown and "windowed (default true): " in shown and "docs/methods/kvarn.md" in shown


def test_an_unknown_method_is_named(capsys: Capture) -> None:
    assert cli.main(["methods", "magic"]) == 2
    assert (
        "methods: got 'magic', expected one of adapters, clp, evict, function_vectors, kvarn, lora, nsru, piso, reasonalloc, "
        "steering, tada" in capsys.readouterr().err
    )
