"""The order in which a block's linear layers run, the layers that read the same input, and what need not run twice.

It is found by running the block on a few tokens: layers are told apart by the tensors that they are given, so that no code
here knows a model family.
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

# The memory that a tensor lies in: its address, length, width, and how often it was written.
_Key = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Linear layers that read the same input; `make_schedule` creates it.

    linears: their names in the block, in module order.
    output_of: name of the block's part whose output equals that of this group's single layer, if there is such a part. It
        need not be run again.
    """

    linears: tuple[str, ...]
    output_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A direct child of the block that has linear layers, and whose output can stand in for running it again.

    `make_schedule` creates it.

    after_groups: the number of groups that have run when all its layers have.
    tuple_length: the length of the tuple that it returns; 0 when it returns a tensor.
    tuple_index: the one item of the tuple that is read.
    """

    after_groups: int
    tuple_length: int = 0
    tuple_index: int = 0

    def read(self, output: Any) -> torch.Tensor:
        """The tensor of an output."""
        tensor: torch.Tensor = output[self.tuple_index] if self.tuple_length else output
        return tensor

    def wrap(self, tensor: torch.Tensor) -> Any:
        """An output that holds the tensor."""
        if not self.tuple_length:
            return tensor
        return tuple(tensor if i == self.tuple_index else None for i in range(self.tuple_length))


@dataclass(frozen=True, kw_only=True)
class BlockSchedule:
    """The order of work in one block; `make_schedule` creates it.

    groups: in the order in which they run.
    parts: by name.
    unreached: the layers that no token reaches.
    """

    groups: tuple[Group, ...]
    parts: dict[str, Part]
    unreached: tuple[str, ...]


@dataclass
class _Observation:
    """Inputs and outputs that were seen in one run of a block; `_observe` creates and fills it.

    inputs: of each layer, in the order in which they ran. They are kept so that no address is used twice.
    keys: the memory of each layer's input.
    outputs: of each layer.
    children: the outputs of each direct child of the block, in order.
    result: the output of the block.
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    keys: dict[str, _Key] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    children: dict[str, list[Any]] = field(default_factory=dict)
    result: torch.Tensor | None = None


def make_schedule(
    block: nn.Module, linears: Sequence[str], samples: Iterable[tuple[torch.Tensor, BlockCall]], where: str
) -> BlockSchedule:
    """Return the schedule of a block, which the first sample [b, T, d] must show.

    Later samples are run only as long as a layer is not reached.

    Raises:
        UnsupportedError: a layer runs twice in one pass.
    """
    first: _Observation | None = None
    after: dict[str, set[str]] = {name: set() for name in linears}
    together: dict[str, set[str]] = {name: {name} for name in linears}
    reached: set[str] = set()
    sample: tuple[torch.Tensor, BlockCall] | None = None
    for hidden, call in samples:
        seen = _observe(block, linears, hidden, call, where)
        if first is None:
            first, sample = seen, (hidden, call)
        order = list(seen.keys)
        for before, name in itertools.pairwise(order):
            after[name].add(before)
        for name in order:
            together[name].update(other for other in order if seen.keys[other] == seen.keys[name])
        reached.update(order)
        if len(reached) == len(linears):
            break
    assert first is not None and sample is not None
    groups = _order_groups(after, together, reached)
    parts = _find_parts(block, groups, first, sample)
    last = {name: groups[part.after_groups - 1] for name, part in parts.items()}
    by_group = {
        part.after_groups - 1: name
        for name, part in parts.items()
        if _is_output_of_layer(name, last[name], part, first, sample[0])
    }
    return BlockSchedule(
        groups=tuple(Group(linears=group, output_of=by_group.get(number)) for number, group in enumerate(groups)),
        parts=parts,
        unreached=tuple(name for name in linears if name not in reached),
    )


def _order_groups(
    after: dict[str, set[str]], together: dict[str, set[str]], reached: set[str]
) -> list[tuple[str, ...]]:
    """Groups of layers in an order that every run agrees with; a group takes the place of its first layer."""
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


def _observe(
    block: nn.Module, linears: Sequence[str], hidden: torch.Tensor, call: BlockCall, where: str
) -> _Observation:
    """Run the block once, and note what its layers and children read and return."""
    seen = _Observation()

    def note_input(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        if name in seen.keys:
            raise UnsupportedError(f"{where}.{name}: runs twice in one pass; expected every linear layer to run once")
        x = inputs[0]
        seen.inputs[name] = x
        seen.keys[name] = (x.data_ptr(), x.numel(), x.shape[-1], x._version)

    hooks = []
    for name in linears:
        module = block.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: note_input(name, inputs)))
        hooks.append(module.register_forward_hook(lambda _, i, out, name=name: seen.outputs.update({name: out})))
    for name, child in block.named_children():
        outputs = seen.children.setdefault(name, [])
        hooks.append(child.register_forward_hook(lambda _, i, out, outputs=outputs: outputs.append(out)))
    try:
        with torch.no_grad():
            seen.result = call.run(block, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _find_parts(
    block: nn.Module, groups: Sequence[tuple[str, ...]], seen: _Observation, sample: tuple[torch.Tensor, BlockCall]
) -> dict[str, Part]:
    """The children that run once, have linear layers, and of whose output the block reads one tensor."""
    parts: dict[str, Part] = {}
    for name, outputs in seen.children.items():
        own = [number for number, group in enumerate(groups) if any(f"{one}.".startswith(f"{name}.") for one in group)]
        part = _make_part(outputs[0], own[-1] + 1) if own and len(outputs) == 1 else None
        if part is not None and (not part.tuple_length or _reads_one_item(block, name, part, outputs[0], seen, sample)):
            parts[name] = part
    return parts


def _make_part(output: Any, after_groups: int) -> Part | None:
    """The part that returns such an output; None for anything but a tensor or a tuple of tensors."""
    if isinstance(output, torch.Tensor):
        return Part(after_groups=after_groups)
    if not isinstance(output, tuple) or not all(one is None or isinstance(one, torch.Tensor) for one in output):
        return None
    tensors = [number for number, one in enumerate(output) if one is not None]
    return Part(after_groups=after_groups, tuple_length=len(output), tuple_index=tensors[0]) if tensors else None


def _reads_one_item(
    block: nn.Module, name: str, part: Part, output: Any, seen: _Observation, sample: tuple[torch.Tensor, BlockCall]
) -> bool:
    """Whether the block returns the same when all other tensors in the child's output are NaN."""
    others = [one for number, one in enumerate(output) if one is not None and number != part.tuple_index]
    if not all(one.is_floating_point() for one in others):
        return False
    spoiled = tuple(
        one if one is None or number == part.tuple_index else torch.full_like(one, torch.nan)
        for number, one in enumerate(output)
    )
    child = block.get_submodule(name)
    hook = child.register_forward_hook(lambda *_: spoiled)
    try:
        with torch.no_grad():
            result = sample[1].run(block, sample[0])
    finally:
        hook.remove()
    return seen.result is not None and torch.equal(result, seen.result)


def _is_output_of_layer(
    name: str, group: tuple[str, ...], part: Part, seen: _Observation, hidden: torch.Tensor
) -> bool:
    """Whether the part's output is that of its last layer, for as many tokens as enter the block."""
    last = group[0]
    return (
        len(group) == 1
        and f"{last}.".startswith(f"{name}.")
        and last in seen.outputs
        and part.read(seen.children[name][0]) is seen.outputs[last]
        and seen.inputs[last].shape[:-1] == hidden.shape[:-1]
    )
