"""The tokens of one model on their way through the blocks: the inputs of each group of layers, with each product run once.

The output of a part of the block is kept on disk as soon as all its layers have run, and so is the input of a part's last
layer. Later runs of the block read these files instead of computing the values again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from enginewright.exporters.calibration.activation_file import ActivationFile
from enginewright.exporters.calibration.block_calls import BlockCall
from enginewright.exporters.calibration.block_schedule import BlockSchedule
from enginewright.exporters.calibration.fast_linear import FastLinear, multiply


class _InputReached(Exception):
    """Ends a run of the block at a layer, and carries that layer's input."""

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()
        self.x = x


@dataclass(kw_only=True)
class ActivationStream:
    """The tokens of the quantised or of the float model; `BlockWalk` creates it, and calls `begin` for every block.

    name: quantized or float.
    states: the hidden states [b, T, d] that enter the block, batch by batch.
    scratch: the folder for the kept inputs and outputs of parts.
    dtype: of the tensors that are kept.
    device: the device that tensors are read to.
    block: the block with this stream's weights; set by `begin`.
    calls: the block's call for every batch; set by `begin`.
    schedule: the block's; set by `begin`.
    """

    name: str
    states: ActivationFile
    scratch: Path
    dtype: torch.dtype
    device: torch.device
    block: nn.Module = field(default_factory=nn.Module)
    calls: Sequence[BlockCall] = ()
    schedule: BlockSchedule = field(default_factory=lambda: BlockSchedule(groups=(), parts={}, unreached=()))
    _files: dict[str, ActivationFile] = field(default_factory=dict)

    def begin(self, block: nn.Module, calls: Sequence[BlockCall], schedule: BlockSchedule) -> None:
        """Come to the next block, of which nothing is kept yet."""
        self.block, self.calls, self.schedule = block, calls, schedule
        for file in self._files.values():
            file.restart()

    def inputs(self, group: int) -> Iterator[torch.Tensor | None]:
        """The input [n, D] of a group's layers, batch by batch; None where no token of a batch reaches them."""
        found = self.schedule.groups[group]
        kept = self._file(found.output_of, "input") if found.output_of else None
        with self._replaying(group), self._stopping_at(found.linears):
            for number, call in enumerate(self.calls):
                self._number = number
                try:
                    with torch.no_grad(), FastLinear():
                        call.run(self.block, self.states.read(number))
                except _InputReached as reached:
                    if kept is not None:
                        kept.append(reached.x)
                    yield reached.x.reshape(-1, reached.x.shape[-1])
                else:
                    yield None

    def outputs(self) -> Iterator[torch.Tensor]:
        """The output of the block, batch by batch."""
        with self._replaying(len(self.schedule.groups)):
            for number, call in enumerate(self.calls):
                self._number = number
                with torch.no_grad(), FastLinear():
                    hidden = call.run(self.block, self.states.read(number))
                yield hidden

    def remove(self) -> None:
        """Delete all files but the states."""
        for file in self._files.values():
            file.remove()

    @contextmanager
    def _stopping_at(self, linears: Sequence[str]) -> Iterator[None]:
        """Raise `_InputReached` in place of running any of these layers."""

        def stop(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            raise _InputReached(inputs[0])

        hooks = [self.block.get_submodule(name).register_forward_pre_hook(stop) for name in linears]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _replaying(self, group: int) -> Iterator[None]:
        """Let every part whose layers have all run before `group` return its kept output, and keep it if it is not yet."""
        with ExitStack() as stack:
            for name, part in self.schedule.parts.items():
                if part.after_groups <= group:
                    stack.enter_context(self._replaying_part(name, last=group == len(self.schedule.groups)))
            yield

    @contextmanager
    def _replaying_part(self, name: str, *, last: bool) -> Iterator[None]:
        """Let the part `name` return its kept output.

        last: whether this is the last run of the block, after which no output is needed.
        """
        part, child = self.schedule.parts[name], self.block.get_submodule(name)
        last_layer = next((one.linears[0] for one in self.schedule.groups if one.output_of == name), None)
        kept, forward = self._file(name, "output"), child.forward
        is_kept = len(kept) == len(self.calls)

        def replay(*args: Any, **kwargs: Any) -> Any:
            if is_kept:
                return part.wrap(kept.read(self._number))
            if last_layer is None:
                result = part.read(forward(*args, **kwargs))
            else:
                layer: Any = self.block.get_submodule(last_layer)
                result = multiply(self._file(name, "input").read(self._number), layer.weight, layer.bias)
            if not last:
                kept.append(result)
            return part.wrap(result)

        if not is_kept:
            kept.restart()
        child.forward = replay
        try:
            yield
        finally:
            del child.forward

    def _file(self, part: str, kind: str) -> ActivationFile:
        """The file of a part's kept values.

        kind: input or output.
        """
        name = f"{part}-{kind}"
        if name not in self._files:
            path = self.scratch / f"{self.name}-{name}.scratch"
            self._files[name] = ActivationFile(path, self.dtype, self.device)
        return self._files[name]
