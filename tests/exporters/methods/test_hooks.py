"""Hooks of methods: no function of a method is a hook with a misspelt name, which the registry would ignore."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from enginewright.exporters import methods
from enginewright.exporters.methods import registry
from enginewright.exporters.methods.registry import HOOKS, METHODS, find_method

MODULES = sorted(
    found.name for found in pkgutil.walk_packages(methods.__path__, f"{methods.__name__}.") if not found.ispkg
)


def edits(name: str, hook: str) -> int:
    """How many letters are to be removed, added or replaced to make `hook` of `name`, at most."""
    changes = difflib.SequenceMatcher(None, name, hook, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in changes if kind != "equal")


def misspelt(module: ModuleType | SimpleNamespace) -> Iterator[str]:
    """Each function of a module whose name is one or two letters away from a hook's, with that hook."""
    for name, value in vars(module).items():
        own = inspect.isfunction(value) and value.__module__ == module.__name__
        if own and not name.startswith("_") and name not in HOOKS:
            yield from (f"{name}, expected {hook}" for hook in HOOKS if edits(name, hook) <= 2)


@pytest.mark.parametrize("name", MODULES)
def test_no_hook_is_misspelt(name: str) -> None:
    assert not list(misspelt(importlib.import_module(name)))


@pytest.mark.parametrize("name", METHODS)
def test_hooks_take_the_config_first(name: str) -> None:
    module = find_method(name)
    hooks = [getattr(module, hook) for hook in HOOKS if hasattr(module, hook)]
    assert hooks, f"{name} has none of {', '.join(HOOKS)}"
    assert all(next(iter(inspect.signature(hook).parameters)) == "config" for hook in hooks)


def test_the_registry_calls_every_hook() -> None:
    assert all(inspect.isfunction(getattr(registry, hook)) for hook in HOOKS)
    assert all(hook in (registry.__doc__ or "") for hook in HOOKS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chose_cache", ["choose_cache"]),
        ("transform_weight", ["transform_weights"]),
        ("extend_graphs", ["extend_graph"]),
        ("check_modle", ["check_model"]),
        ("choose_cache", []),
        ("check_layers", []),
    ],
)
def test_the_check_sees_and_spares(name: str, expected: list[str]) -> None:
    def function() -> None: ...

    functions: dict[str, Callable[..., Any]] = {name: function}
    found = list(misspelt(SimpleNamespace(__name__=__name__, **functions)))
    assert found == [f"{name}, expected {hook}" for hook in expected]
