"""In which order a block's linear layers run, which of them read the same input, and which need not run twice.

Found by running the block on a few tokens and looking: layers are told apart by the tensors they are given, so that no
code here knows a family.
"""

from __future__ import annotations

import graphlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from enginewright.exporters.calibration.block_calls import BlockCall
from enginewright.runtime.errors import UnsupportedError

_Key = tuple[
    int, int, int, int
]  # of the memory that a tensor lies in: address, length, width, how often it was written


@dataclass(frozen=True, kw_only=True)
class Group:
    """Linear layers, by their names in the block, that read the same input, in module order.

    tail: the part of the block whose output is what the only layer of this group makes, if there is one.
    """

    linears: tuple[str, ...]
    tail: str | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A direct child of the block with linear layers, whose output can stand for running it again.

    done: after how many groups all its layers are through. fields: how long a tuple its output is, of which only `field`
    is read; 0 when the output is a tensor.
    """

    done: int
    fields: int = 0
    field: int = 0

    def read(self, output: Any) -> torch.Tensor:
        """The tensor of an output."""
        tensor: torch.Tensor = output[self.field] if self.fields else output
        return tensor

    def wrap(self, tensor: torch.Tensor) -> Any:
        """An output that holds the tensor."""
        return tuple(tensor if i == self.field else None for i in range(self.fields)) if self.fields else tensor


@dataclass(frozen=True, kw_only=True)
class BlockSchedule:
    """The groups of a block in the order they run, its parts by name, and the layers that no token reaches."""

    groups: tuple[Group, ...]
    parts: dict[str, Part]
    unreached: tuple[str, ...]


@dataclass
class _Trace:
    """What one run of a block showed: the layers' inputs and outputs in order, the outputs of its children."""

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)  # kept, so that no address is used twice
    keys: dict[str, _Key] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    children: dict[str, list[Any]] = field(default_factory=dict)
    result: torch.Tensor | None = None


def make_schedule(
    block: nn.Module, linears: Sequence[str], samples: Iterable[tuple[torch.Tensor, BlockCall]], where: str
) -> BlockSchedule:
    """The plan of a block: the first sample [b, T, d] must show it, later ones are run while a layer is not reached.

    Raises:
        UnsupportedError: a layer runs twice in one pass.
    """
    first: _Trace | None = None
    after: dict[str, set[str]] = {name: set() for name in linears}
    together: dict[str, set[str]] = {name: {name} for name in linears}
    reached: set[str] = set()
    sample: tuple[torch.Tensor, BlockCall] | None = None
    for hidden, call in samples:
        trace = _run(block, linears, hidden, call, where)
        if first is None:
            first, sample = trace, (hidden, call)
        order = list(trace.keys)
        for before, name in itertools.pairwise(order):
            after[name].add(before)
        for name in order:
            together[name].update(other for other in order if trace.keys[other] == trace.keys[name])
        reached.update(order)
        if len(reached) == len(linears):
            break
    assert first is not None and sample is not None
    groups = _group(after, together, reached)
    parts = _find_parts(block, groups, first, sample)
    tails = {name: _tail(name, groups[part.done - 1], part, first, sample[0]) for name, part in parts.items()}
    by_group = {parts[name].done - 1: name for name, is_tail in tails.items() if is_tail}
    return BlockSchedule(
        groups=tuple(Group(linears=group, tail=by_group.get(number)) for number, group in enumerate(groups)),
        parts=parts,
        unreached=tuple(name for name in linears if name not in reached),
    )


def _group(after: dict[str, set[str]], together: dict[str, set[str]], reached: set[str]) -> list[tuple[str, ...]]:
    """Layers in an order that every run agrees with, those of one input at the place of the first."""
    place = {name: number for number, name in enumerate(after)}
    try:
        order = list(graphlib.TopologicalSorter(after).static_order())
    except graphlib.CycleError:  # experts in another order each time: they do not read each other's outputs
        order = list(after)
    groups: list[tuple[str, ...]] = []
    seen: set[str] = set()
    for name in order:
        if name in reached and name not in seen:
            group = tuple(sorted(together[name], key=place.__getitem__))
            seen.update(group)
            groups.append(group)
    return groups


def _run(block: nn.Module, linears: Sequence[str], hidden: torch.Tensor, call: BlockCall, where: str) -> _Trace:
    trace = _Trace()

    def enters(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        if name in trace.keys:
            raise UnsupportedError(f"{where}.{name}: runs twice in one pass; expected every linear layer to run once")
        x = inputs[0]
        trace.inputs[name] = x
        trace.keys[name] = (x.data_ptr(), x.numel(), x.shape[-1], x._version)

    hooks = []
    for name in linears:
        module = block.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: enters(name, inputs)))
        hooks.append(module.register_forward_hook(lambda _, i, out, name=name: trace.outputs.update({name: out})))
    for name, child in block.named_children():
        made = trace.children.setdefault(name, [])
        hooks.append(child.register_forward_hook(lambda _, i, out, made=made: made.append(out)))
    try:
        with torch.no_grad():
            trace.result = call.run(block, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    return trace


def _find_parts(
    block: nn.Module, groups: Sequence[tuple[str, ...]], trace: _Trace, sample: tuple[torch.Tensor, BlockCall]
) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for name, outputs in trace.children.items():
        own = [number for number, group in enumerate(groups) if any(f"{one}.".startswith(f"{name}.") for one in group)]
        part = _form(outputs[0], own[-1] + 1) if own and len(outputs) == 1 else None
        if part is not None and (not part.fields or _reads_one_field(block, name, part, outputs[0], trace, sample)):
            parts[name] = part
    return parts


def _form(output: Any, done: int) -> Part | None:
    if isinstance(output, torch.Tensor):
        return Part(done=done)
    if not isinstance(output, tuple) or not all(one is None or isinstance(one, torch.Tensor) for one in output):
        return None
    tensors = [number for number, one in enumerate(output) if one is not None]
    return Part(done=done, fields=len(output), field=tensors[0]) if tensors else None


def _reads_one_field(
    block: nn.Module, name: str, part: Part, output: Any, trace: _Trace, sample: tuple[torch.Tensor, BlockCall]
) -> bool:
    """Whether the block makes the same of the child's output when the other tensors in it are NaN."""
    others = [one for number, one in enumerate(output) if one is not None and number != part.field]
    if not all(one.is_floating_point() for one in others):
        return False
    spoiled = tuple(
        one if one is None or number == part.field else torch.full_like(one, torch.nan)
        for number, one in enumerate(output)
    )
    child = block.get_submodule(name)
    hook = child.register_forward_hook(lambda *_: spoiled)
    try:
        with torch.no_grad():
            result = sample[1].run(block, sample[0])
    finally:
        hook.remove()
    return trace.result is not None and torch.equal(result, trace.result)


def _tail(name: str, group: tuple[str, ...], part: Part, trace: _Trace, hidden: torch.Tensor) -> bool:
    """Whether the part's output is its last layer's, for as many tokens as enter the block."""
    last = group[0]
    return (
        len(group) == 1
        and f"{last}.".startswith(f"{name}.")
        and last in trace.outputs
        and part.read(trace.children[name][0]) is trace.outputs[last]
        and trace.inputs[last].shape[:-1] == hidden.shape[:-1]
    )
