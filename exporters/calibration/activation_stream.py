"""One model's tokens on their way through the blocks: the inputs of each group of layers, each product computed once.

What a part of the block made is kept on disk as soon as all its layers are through, and so is the input of a part's last
layer. Later runs of the block take these instead of computing them again.
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


class _Reached(Exception):
    """Ends a run of the block at a layer, whose input it carries."""

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()
        self.x = x


@dataclass(kw_only=True)
class ActivationStream:
    """The quantised or the float model's tokens; the driver makes it, and sets block, calls and plan for every block.

    states: hidden states [b, T, d] that enter the block, by batch. scratch: where the spools of parts lie.
    block: with this stream's weights. calls: the block's call for every batch.
    """

    name: str
    states: ActivationFile
    scratch: Path
    dtype: torch.dtype
    device: torch.device
    block: nn.Module = field(default_factory=nn.Module)
    calls: Sequence[BlockCall] = ()
    plan: BlockSchedule = field(default_factory=lambda: BlockSchedule(groups=(), parts={}, unreached=()))
    _spools: dict[str, ActivationFile] = field(default_factory=dict)

    def begin(self, block: nn.Module, calls: Sequence[BlockCall], plan: BlockSchedule) -> None:
        """Come to the next block: nothing of it is kept yet."""
        self.block, self.calls, self.plan = block, calls, plan
        for spool in self._spools.values():
            spool.restart()

    def inputs(self, group: int) -> Iterator[torch.Tensor | None]:
        """The input [n, D] of a group's layers, batch by batch; None where no token of a batch reaches them."""
        found = self.plan.groups[group]
        kept = self._spool(found.tail, "input") if found.tail else None
        with self._replaying(group), self._stopping(found.linears):
            for number, call in enumerate(self.calls):
                self._number = number
                try:
                    with torch.no_grad(), FastLinear():
                        call.run(self.block, self.states.read(number))
                except _Reached as reached:
                    if kept is not None:
                        kept.append(reached.x)
                    yield reached.x.reshape(-1, reached.x.shape[-1])
                else:
                    yield None

    def outputs(self) -> Iterator[torch.Tensor]:
        """What the block makes, batch by batch."""
        with self._replaying(len(self.plan.groups)):
            for number, call in enumerate(self.calls):
                self._number = number
                with torch.no_grad(), FastLinear():
                    hidden = call.run(self.block, self.states.read(number))
                yield hidden

    def remove(self) -> None:
        """Delete what is kept on disk beside the states."""
        for spool in self._spools.values():
            spool.remove()

    @contextmanager
    def _stopping(self, linears: Sequence[str]) -> Iterator[None]:
        def stop(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            raise _Reached(inputs[0])

        hooks = [self.block.get_submodule(name).register_forward_pre_hook(stop) for name in linears]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _replaying(self, group: int) -> Iterator[None]:
        """Let parts whose layers are all through before `group` give what they made; what is not kept is, if needed."""
        with ExitStack() as stack:
            for name, part in self.plan.parts.items():
                if part.done <= group:
                    stack.enter_context(self._replay(name, last=group == len(self.plan.groups)))
            yield

    @contextmanager
    def _replay(self, name: str, *, last: bool) -> Iterator[None]:
        part, child = self.plan.parts[name], self.block.get_submodule(name)
        tail = next((one.linears[0] for one in self.plan.groups if one.tail == name), None)
        made, run = self._spool(name, "output"), child.forward
        known = len(made) == len(self.calls)

        def replay(*args: Any, **kwargs: Any) -> Any:
            if known:
                return part.wrap(made.read(self._number))
            if tail is None:
                result = part.read(run(*args, **kwargs))
            else:
                layer: Any = self.block.get_submodule(tail)
                result = multiply(self._spool(name, "input").read(self._number), layer.weight, layer.bias)
            if not last:
                made.append(result)
            return part.wrap(result)

        if not known:
            made.restart()
        child.forward = replay
        try:
            yield
        finally:
            del child.forward

    def _spool(self, part: str, kind: str) -> ActivationFile:
        name = f"{part}-{kind}"
        if name not in self._spools:
            path = self.scratch / f"{self.name}-{name}.scratch"
            self._spools[name] = ActivationFile(path, self.dtype, self.device)
        return self._spools[name]
