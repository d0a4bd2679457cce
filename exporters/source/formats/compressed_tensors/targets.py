"""Finds the settings that belong to a module: by its name, by patterns, and by the kind of module."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginewright.exporters.source.formats.compressed_tensors.scheme import DENSE, Scheme, read_scheme
from enginewright.runtime.errors import ExportError, UnsupportedError

_PATTERN = "re:"
_GROUP_KEYS = {"targets", "weights", "input_activations", "output_activations", "format"}
_EMBEDDING = re.compile(r"emb|(^|\.)wte$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ModuleGroup:
    """A group of modules with the same settings; `read_groups` creates it.

    name: of the group in the settings.
    targets: names of modules, patterns ("re:..."), or kinds of modules ("Linear").
    scheme: of its weights; None: they are stored as numbers.
    activations: settings of activations that it has.
    """

    name: str
    targets: tuple[str, ...]
    scheme: Scheme | None
    activations: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Targets:
    """All groups, and the modules that none of them means; `read_groups` creates it.

    where: the file and the setting, for error messages.
    groups: in their order.
    ignored: as targets of a group.
    """

    where: str
    groups: tuple[ModuleGroup, ...]
    ignored: tuple[str, ...]
    used: set[str] = field(default_factory=set)
    """The names of the groups that `find` has returned."""

    def find(self, module: str) -> Scheme:
        """Return the scheme of a module that is stored as codes.

        A target with its name goes before patterns, and patterns go before kinds; several of them in alphabetical order.

        Raises:
            ExportError: it is left out of all groups, or the one that means it has weights that are numbers.
        """
        if left_out := self._left_out(module):
            raise ExportError(
                f"{self.where}: ignore: got {left_out!r}, but {module!r} is stored as codes; the settings belong to another "
                "checkpoint"
            )
        found = self._group(module)
        if found is None:
            known = sorted({target for group in self.groups for target in group.targets})
            raise ExportError(
                f"{self.where}: config_groups: {module!r} is stored as codes, but is none of the targets "
                f"{', '.join(known) or '(none)'}; the settings belong to another checkpoint"
            )
        if found.scheme is None:
            raise ExportError(
                f"{self.where}: config_groups.{found.name}: {module!r} is stored as codes, expected numbers; the settings "
                "belong to another checkpoint"
            )
        self.used.add(found.name)
        return found.scheme

    def named(self) -> Iterable[str]:
        """The names of the modules that groups of codes name one by one."""
        for group in self.groups:
            for target in group.targets if group.scheme is not None else ():
                if not target.startswith(_PATTERN) and "." in target and not self._left_out(target):
                    yield target

    @functools.cached_property
    def _by_target(self) -> dict[str, ModuleGroup]:
        return {target: group for group in self.groups for target in group.targets}

    @functools.cached_property
    def _patterns(self) -> tuple[str, ...]:
        return tuple(sorted(target for target in self._by_target if target.startswith(_PATTERN)))

    @functools.cached_property
    def _ignored(self) -> tuple[frozenset[str], tuple[str, ...]]:
        """The names, and the patterns."""
        patterns = tuple(target for target in self.ignored if target.startswith(_PATTERN))
        return frozenset(self.ignored) - frozenset(patterns), patterns

    def _left_out(self, module: str) -> str:
        """The target among those that are ignored that means the module; empty without one."""
        names, patterns = self._ignored
        return module if module in names else _first_fit(module, patterns)

    def _group(self, module: str) -> ModuleGroup | None:
        kinds = ("Embedding", "Linear") if _EMBEDDING.search(module.rpartition(".")[2]) else ("Linear",)
        targets = (module, _first_fit(module, self._patterns), *kinds)
        return next((self._by_target[target] for target in targets if target in self._by_target), None)


def read_groups(settings: dict[str, Any], path: Path) -> Targets:
    """Return the groups of the settings that the file `path` has.

    Raises:
        ExportError, UnsupportedError: a setting is missing, not known, or contradicts another.
    """
    where = f"{path}: quantization_config"
    groups, ignored = settings.get("config_groups"), settings.get("ignore") or []
    if not isinstance(groups, dict):
        raise ExportError(
            f"{where}: config_groups: got {groups!r}, expected groups with their settings; download it again"
        )
    if not _is_texts(ignored):
        raise ExportError(f"{where}: ignore: got {ignored!r}, expected a list of names; download it again")
    _check_patterns(ignored, f"{where}: ignore")
    default = settings.get("format")
    found = tuple(_read_group(name, group, default, f"{where}.config_groups.{name}") for name, group in groups.items())
    return Targets(where=where, groups=found, ignored=tuple(ignored))


def _read_group(name: str, group: Any, default: Any, where: str) -> ModuleGroup:
    if not isinstance(group, dict) or not _is_texts(group.get("targets")):
        raise ExportError(f"{where}: got {group!r}, expected settings with a list of targets; download the file again")
    if unknown := [key for key, value in group.items() if key not in _GROUP_KEYS and value is not None]:
        raise UnsupportedError(
            f"{where}: got the unknown setting {unknown[0]!r}, expected {', '.join(sorted(_GROUP_KEYS))}; save the model with "
            "compressed-tensors 0.20 or earlier"
        )
    _check_patterns(group["targets"], f"{where}.targets")
    weights = group.get("weights")
    if weights is not None and not isinstance(weights, dict):
        raise ExportError(f"{where}.weights: got {weights!r}, expected settings or null; download the file again")
    own = group.get("format") or default
    scheme = None if weights is None or own == DENSE else read_scheme(weights, own, f"{where}.weights")
    activations = tuple(key for key in ("input_activations", "output_activations") if group.get(key) is not None)
    return ModuleGroup(name=name, targets=tuple(group["targets"]), scheme=scheme, activations=activations)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _check_patterns(targets: Iterable[str], where: str) -> None:
    for target in targets:
        try:
            re.compile(target.removeprefix(_PATTERN) if target.startswith(_PATTERN) else "")
        except re.error as e:
            raise ExportError(f"{where}: got {target!r}, which is no pattern ({e}); correct it") from e


def _first_fit(module: str, patterns: Iterable[str]) -> str:
    """The first of the patterns that fits the beginning of the module's name; empty where none does."""
    fitting = (pattern for pattern in patterns if re.match(pattern.removeprefix(_PATTERN), module))
    return next(fitting, "")
