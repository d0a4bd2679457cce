"""Finds how tensors of given names become the model's parameters, so that changes of them can be converted as they are.

An adapter may name tensors as a checkpoint does whose parameters the model fuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.tensor_matching import TensorGroup, find_targets


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The tensors of a checkpoint that one parameter is made of; `find_conversions` creates it.

    target: the parameter's name.
    names: the tensors' names in order; "" stands for a tensor of the parameter that is not known by name.
    converts: whether more than the name differs between tensor and parameter.
    make: makes the parameter, or what it is changed by, from tensors by name.
    parts: for a tensor of experts, one conversion for each slice [1, ...] along axis 0.
    """

    target: str
    names: tuple[str, ...]
    converts: bool
    make: Callable[[Callable[[str], torch.Tensor]], torch.Tensor]
    parts: tuple[Conversion, ...] = ()


def find_conversions(checkpoint: Checkpoint, model: PreTrainedModel, names: Iterable[str]) -> dict[str, Conversion]:
    """Return {name: the conversion it takes part in} for `names` of tensors, which the checkpoint need not have.

    Names that make no parameter are left out.
    """
    wanted = set(names)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, Conversion] = {}
    for target, group in _group(model, {*checkpoint.tensors, *wanted}).items():
        if target not in parameters:
            continue
        tensors = group.tensors
        if group.converter is not None:  # the checkpoint may hold the parameter itself as well
            tensors = [(pattern, name) for pattern, name in tensors if pattern in group.converter.source_patterns]
        if matched := wanted.intersection(name for _, name in tensors):
            one = TensorGroup(tensors=tensors, converter=group.converter)
            conversion = _conversion(model, target, one, _experts(one, tuple(parameters[target].shape)))
            found.update(dict.fromkeys(matched, conversion))
    return found


def _group(model: PreTrainedModel, names: set[str]) -> dict[str, TensorGroup]:
    """Group the names by the parameter that they make, with its conversion where one of them needs it."""
    groups: dict[str, TensorGroup] = {}
    for each in find_targets(model, names):
        group = groups.setdefault(each.target, TensorGroup())
        group.tensors.append((each.pattern or each.name, each.name))
        group.converter = each.converter or group.converter
    return groups


def _experts(group: TensorGroup, shape: tuple[int, ...]) -> list[TensorGroup]:
    """The group of each expert, with "" for the tensors of patterns that have none; none if it is no tensor of experts."""
    if group.converter is None or len(shape) != 3:
        return []
    named: dict[str, list[str]] = {pattern: [] for pattern in group.converter.source_patterns}
    for pattern, name in group.tensors:
        named[pattern].append(name)
    tensors = [(pattern, name) for pattern, names in named.items() for name in names or [""] * shape[0]]
    return TensorGroup(tensors=tensors, converter=group.converter).experts(shape[0])


def _conversion(
    model: PreTrainedModel, target: str, group: TensorGroup, parts: Iterable[TensorGroup] = ()
) -> Conversion:
    return Conversion(
        target=target,
        names=tuple(name for _, name in group.tensors),
        converts=group.converter is not None,
        make=lambda read: group.make(model, target, read)[target],
        parts=tuple(_conversion(model, target, part) for part in parts),
    )
