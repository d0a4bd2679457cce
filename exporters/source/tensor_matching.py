"""Matches a checkpoint's tensors with the model's parameters and persistent buffers, by transformers' own table.

A checkpoint may name and split its tensors in another way than the model does (one tensor per expert, older names).
`transformers.core_model_loading` knows the ways. Only this module touches it, and runs it one tensor of the model at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils.loading_report import LoadStateDictInfo

from enginewright.exporters.source.tensor_source import StoredTensors
from enginewright.exporters.source.unused import Unused
from enginewright.runtime.errors import ExportError

_REASON = "no parameter or buffer of the model is made of it"


@dataclass
class TensorGroup:
    """The stored tensors that one or several tensors of the model are made of; `match_tensors` creates it.

    tensors: pairs of a source pattern and a tensor's name.
    converter: transformers' conversion; None: the one tensor is that of the model.
    missing: tensors that the checkpoint lists without having them, with the file that should hold each.
    """

    tensors: list[tuple[str, str]] = field(default_factory=list)
    converter: WeightConverter | None = None
    missing: dict[str, Path] = field(default_factory=dict)

    @property
    def takes_more(self) -> bool:
        """Whether another tensor can be added: without a conversion the first one is all, as in transformers."""
        return self.converter is not None or not self.tensors

    @property
    def whole(self) -> bool:
        """Whether every tensor that belongs to the group is there."""
        return bool(self.tensors) and not self.missing

    def make(self, model: PreTrainedModel, target: str, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors of the model that this group makes, by name; `target` is the first of them.

        read: returns a stored tensor.
        """
        if self.converter is None:
            return {target: read(self.tensors[0][1])}
        converter = copy.deepcopy(self.converter)
        for pattern, name in self.tensors:
            tensor: Any = partial(read, name)  # called by `convert`, so that reading waits until then
            converter.add_tensor(target, name, pattern, tensor)
        made = converter.convert(target, model=model, config=model.config)
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}

    def experts(self, count: int) -> list[TensorGroup]:
        """Return the group of each of `count` experts; none unless every pattern that has tensors has one for each."""
        if self.converter is None or not isinstance(self.converter.operations[0], MergeModulelist):
            return []
        by_pattern: dict[str, list[str]] = {}
        for pattern, name in self.tensors:
            by_pattern.setdefault(pattern, []).append(name)
        if any(len(names) != count for names in by_pattern.values()):
            return []
        slices = ([(pattern, names[part]) for pattern, names in by_pattern.items()] for part in range(count))
        return [TensorGroup(tensors=tensors, converter=self.converter) for tensors in slices]

    def reduced(self, stored: tuple[int, ...], made: tuple[int, ...]) -> TensorGroup:
        """Return the group without its conversion, if that looks at the shapes of both and then changes nothing.

        stored, made: shape of the first stored tensor, and of what `make` returns.
        """
        turns = self._turns()
        if turns and stored == made and all(step.check_dims for step in turns):
            return TensorGroup(tensors=self.tensors, missing=self.missing)
        return self

    @property
    def is_by_slice(self) -> bool:
        """Whether slice i along axis 0 of what `make` returns is made of slice i of the one stored tensor."""
        return bool(turns := self._turns()) and all(0 not in (step.dim0, step.dim1) for step in turns)

    def _turns(self) -> list[Transpose]:
        """The steps of the conversion, if it is one of transpositions of one tensor alone."""
        steps = [] if self.converter is None else self.converter.operations
        turns = [step for step in steps if isinstance(step, Transpose)]
        return turns if len(turns) == len(steps) and len(self.tensors) == 1 else []

    def shapes(self, checkpoint: StoredTensors, model: PreTrainedModel, target: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what `make` returns, computed on meta tensors.

        Raises:
            ExportError: the stored tensors do not fit each other.
        """

        def on_meta(name: str) -> torch.Tensor:
            return torch.empty(checkpoint.tensors[name].shape, device="meta")

        try:
            return {name: tuple(tensor.shape) for name, tensor in self.make(model, target, on_meta).items()}
        except (RuntimeError, ValueError, IndexError) as e:
            raise ExportError(
                f"{checkpoint.path}: {target!r} cannot be made of its tensors in the checkpoint ({e})"
            ) from e


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The use that a model has for each tensor of a checkpoint; `match_tensors` creates it.

    groups: by the tensor of the model that they make.
    unmatched: stored tensors that make none, each with the names that transformers has for it.
    """

    groups: dict[str, TensorGroup]
    unmatched: dict[str, tuple[str, ...]]

    def lack(self, checkpoint: StoredTensors, name: str, kind: str) -> ExportError:
        """Return the error about a tensor of the model, a `kind` such as "parameter", that cannot be made."""
        group = self.groups.get(name, TensorGroup())
        if not group.missing:
            return ExportError(
                f"{checkpoint.path}: {kind} {name!r} has no tensor in the checkpoint; "
                "config.json and the weights disagree, or a file is missing"
            )
        tensor, file = next(iter(group.missing.items()))
        found = "is missing in it" if file.is_file() else "is missing, and so is the file"
        return ExportError(f"{file}: tensor {tensor!r} of {kind} {name!r} {found}; download it again")


@dataclass(frozen=True, kw_only=True)
class MatchedName:
    """The tensor of the model that a stored tensor is a part of; `find_targets` creates it.

    name: of the stored tensor.
    target: the name that transformers has for it; of a tensor of the model unless `name` has no place in it.
    pattern: of the conversion that the name matches, if it does.
    converter: that conversion; None: at most the name differs.
    """

    name: str
    target: str
    pattern: str | None = None
    converter: WeightConverter | None = None


def find_targets(model: PreTrainedModel, names: Iterable[str]) -> Iterator[MatchedName]:
    """Yield the tensor of the model that each of `names` is a part of, in the natural order of the names."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known = model.state_dict()
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if target not in known and name in known:
            target, pattern = name, None
        converter = by_pattern[pattern] if pattern is not None else None
        yield MatchedName(name=name, target=target, pattern=pattern, converter=converter)


def match_tensors(checkpoint: StoredTensors, model: PreTrainedModel) -> Matching:
    """Group the checkpoint's tensors by the parameter or persistent buffer that they make."""
    known, missing = model.state_dict(), checkpoint.missing
    groups: dict[str, TensorGroup] = {}
    unmatched: dict[str, tuple[str, ...]] = {}
    for each in find_targets(model, {*checkpoint.tensors, *missing}):
        name, target, converter = each.name, each.target, each.converter
        if target in known and groups.setdefault(target, TensorGroup(converter=converter)).takes_more:
            group = groups[target]
            if name in missing:
                group.missing[name] = missing[name]
            else:
                group.tensors.append((each.pattern or name, name))
        elif name not in missing:
            patterns = converter.target_patterns if converter is not None else [""]
            unmatched[name] = tuple(target.replace(patterns[0], other) for other in patterns)
    return Matching(groups=groups, unmatched=unmatched)


def persistent_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The buffers of `model` that a checkpoint holds, by name."""
    stored = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name in stored}


def check_shape(checkpoint: StoredTensors, name: str, shape: tuple[int, ...], expected: torch.Tensor) -> None:
    """Raise ExportError unless the checkpoint gives the tensor `name` of the model the shape that it has there."""
    if shape != tuple(expected.shape):
        raise ExportError(
            f"{checkpoint.path}: {name} got shape {list(shape)} from the checkpoint, expected {list(expected.shape)} from "
            "config.json; they do not belong together"
        )


def note_unused(checkpoint: StoredTensors, unused: Unused, model: PreTrainedModel, matching: Matching) -> None:
    """Add the tensors that make nothing to `unused`, by file."""
    for file, names in unexpected_tensors(checkpoint, model, matching).items():
        unused.add(file, names, _REASON)


def unexpected_tensors(
    checkpoint: StoredTensors, model: PreTrainedModel, matching: Matching
) -> dict[str, tuple[str, ...]]:
    """Return {file: tensors that make nothing}, without those that transformers declares as left out for this model."""
    unexpected = _without_declared(model, (name for names in matching.unmatched.values() for name in names))
    by_file: dict[str, list[str]] = {}
    for name, renamed in matching.unmatched.items():
        if not unexpected.isdisjoint(renamed):
            by_file.setdefault(checkpoint.tensors[name].file.name, []).append(name)
    return {file: tuple(names) for file, names in sorted(by_file.items())}


def _without_declared(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """The names without those that transformers ignores: old buffers, layers that only training uses."""
    info = LoadStateDictInfo(
        missing_keys=set(),
        unexpected_keys=set(names),
        mismatched_keys=set(),
        error_msgs=[],
        conversion_errors={},
        skipped_pp_keys=set(),
    )
    model._adjust_missing_and_unexpected_keys(info)
    return info.unexpected_keys
