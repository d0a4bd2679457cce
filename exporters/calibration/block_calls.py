"""What enters the first block, and with which arguments the model calls each: its own forward, with blocks that only note.

The embedding and whatever else runs before the blocks is computed by the model's own code; the blocks hand on what they
are given. So no code of ours knows a family.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from enginewright.exporters.calibration.blocks import Blocks, place_tensors
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import UnsupportedError

HIDDEN = "hidden_states"


@dataclass(frozen=True, kw_only=True)
class BlockCall:
    """The arguments of one block beside the hidden states: masks, rotary tables and so on."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """What the block makes of hidden[b, T, d]."""
        output = block(hidden, *self.args, **self.kwargs)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result


Calls = dict[tuple[int, int], tuple[BlockCall, ...]]  # by sequences and length: the call of every block


class _Last(Exception):
    """Ends the model's forward: nothing behind the blocks is needed."""


def enter(
    blocks: Blocks,
    weights: Mapping[str, Weight],
    batches: Sequence[torch.Tensor],
    dtype: torch.dtype,
    accept: Callable[[int, torch.Tensor], None],
) -> Calls:
    """Pass the number and the hidden states [b, T, d] that enter the first block of each batch of tokens [b, T] on.

    Raises:
        UnsupportedError: the blocks are not called one after another, or their arguments depend on the tokens.
    """
    calls: Calls = {}
    model = copy.deepcopy(blocks.skeleton.model)  # its embedding goes when this function is done
    modules = list(model.get_submodule(blocks.prefix).children())
    family = model.config.model_type
    with _placing(model, blocks, weights, dtype, batches[0].device), torch.no_grad():
        for number, ids in enumerate(batches):
            noted = _Noted(family, modules)
            with noted, suppress(_Last):
                model(input_ids=ids, use_cache=False)
            if len(noted.calls) != len(modules) or noted.hidden is None:
                raise UnsupportedError(
                    f"{family}: got {len(noted.calls)} of its {len(modules)} blocks called, expected all"
                )
            accept(number, noted.hidden)
            found = tuple(noted.calls)
            if not _same(calls.setdefault((ids.shape[0], ids.shape[1]), found), found):
                raise UnsupportedError(
                    f"{family}: what its blocks are called with depends on the tokens; expected masks and positions alone"
                )
    return calls


class _Noted:
    """The calls of one forward of `model`, noted in place of its blocks' own forwards while the context is entered."""

    def __init__(self, family: str, modules: Sequence[nn.Module]) -> None:
        self._family, self._modules = family, modules
        self.hidden: torch.Tensor | None = None
        self.calls: list[BlockCall] = []

    def __enter__(self) -> None:
        for number, block in enumerate(self._modules):
            block.forward = partial(self._note, number)

    def __exit__(self, *_: object) -> None:
        for block in self._modules:
            del block.forward

    def _note(self, number: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden, rest = (kwargs.pop(HIDDEN), args) if HIDDEN in kwargs else (args[0], args[1:])
        if number != len(self.calls) or (number and hidden is not self.hidden):
            raise UnsupportedError(
                f"{self._family}: block {number} is not given what block {number - 1} made; expected blocks that run one "
                "after another"
            )
        self.hidden = hidden
        self.calls.append(BlockCall(args=rest, kwargs=kwargs))
        if len(self.calls) == len(self._modules):
            raise _Last
        return self.hidden


@contextmanager
def _placing(
    model: nn.Module, blocks: Blocks, weights: Mapping[str, Weight], dtype: torch.dtype, device: torch.device
) -> Iterator[None]:
    """Load the weights of a module outside the blocks when it runs, so that the output projection's stay on disk."""
    placed: set[nn.Module] = set()

    def place(prefix: str, module: nn.Module, _: Any) -> None:
        if module not in placed:
            placed.add(module)
            place_tensors(module, prefix, blocks.skeleton.buffers, weights, dtype, device, recurse=False)

    hooks = [
        module.register_forward_pre_hook(partial(place, f"{name}." if name else ""))
        for name, module in model.named_modules()
        if not f"{name}.".startswith(f"{blocks.prefix}.")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _same(a: Any, b: Any) -> bool:
    """Whether two calls, or parts of them, hold the same values."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a is b or torch.equal(a, b)
    if isinstance(a, BlockCall) and isinstance(b, BlockCall):
        return _same(a.args, b.args) and _same(a.kwargs, b.kwargs)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a is b or a == b)
