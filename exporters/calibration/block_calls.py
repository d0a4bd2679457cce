"""Records the first block's input and the arguments of every block, by running the model's own `forward`.

The model's own code computes the embedding and everything else before the blocks. The blocks themselves only record their
arguments and return the input that they are given. So no code of ours knows a model family.
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
    """The arguments that one block gets in addition to the hidden states: masks, rotary tables and so on.

    `record_calls` creates it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The output of the block for hidden[b, T, d]."""
        output = block(hidden, *self.args, **self.kwargs)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result


CallTable = dict[tuple[int, int], tuple[BlockCall, ...]]  # (sequences, length) of a batch -> the call of every block


class _AllCalled(Exception):
    """Ends the model's forward after its last block: nothing after the blocks is needed."""


def record_calls(
    blocks: Blocks,
    weights: Mapping[str, Weight],
    batches: Sequence[torch.Tensor],
    dtype: torch.dtype,
    accept: Callable[[int, torch.Tensor], None],
) -> CallTable:
    """Run the model on batches of tokens [b, T] as far as its blocks, and return the call of every block by batch size.

    accept: called for each batch, with its number and the hidden states [b, T, d] that enter the first block.

    Raises:
        UnsupportedError: the blocks are not called one after another, or their arguments depend on the tokens.
    """
    calls: CallTable = {}
    model = copy.deepcopy(blocks.skeleton.model)  # its embedding goes when this function is done
    modules = list(model.get_submodule(blocks.prefix).children())
    family = model.config.model_type
    with _loading_weights(model, blocks, weights, dtype, batches[0].device), torch.no_grad():
        for number, ids in enumerate(batches):
            recorder = _CallRecorder(family, modules)
            with recorder, suppress(_AllCalled):
                model(input_ids=ids, use_cache=False)
            if len(recorder.calls) != len(modules) or recorder.hidden is None:
                raise UnsupportedError(
                    f"{family}: got {len(recorder.calls)} of its {len(modules)} blocks called, expected all"
                )
            accept(number, recorder.hidden)
            found = tuple(recorder.calls)
            if not _are_equal(calls.setdefault((ids.shape[0], ids.shape[1]), found), found):
                raise UnsupportedError(
                    f"{family}: what its blocks are called with depends on the tokens; expected masks and positions alone"
                )
    return calls


class _CallRecorder:
    """Records the calls of a model's blocks during one forward pass, in place of running them.

    While the context is entered, each block's own forward is replaced.
    """

    def __init__(self, family: str, modules: Sequence[nn.Module]) -> None:
        self._family, self._modules = family, modules
        self.hidden: torch.Tensor | None = None
        self.calls: list[BlockCall] = []

    def __enter__(self) -> None:
        for number, block in enumerate(self._modules):
            block.forward = partial(self._record, number)

    def __exit__(self, *_: object) -> None:
        for block in self._modules:
            del block.forward

    def _record(self, number: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden, rest = (kwargs.pop(HIDDEN), args) if HIDDEN in kwargs else (args[0], args[1:])
        if number != len(self.calls) or (number and hidden is not self.hidden):
            raise UnsupportedError(
                f"{self._family}: block {number} is not given what block {number - 1} made; expected blocks that run one "
                "after another"
            )
        self.hidden = hidden
        self.calls.append(BlockCall(args=rest, kwargs=kwargs))
        if len(self.calls) == len(self._modules):
            raise _AllCalled
        return self.hidden


@contextmanager
def _loading_weights(
    model: nn.Module, blocks: Blocks, weights: Mapping[str, Weight], dtype: torch.dtype, device: torch.device
) -> Iterator[None]:
    """Load the weights of a module outside the blocks when it first runs, so that the output projection's stay on disk."""
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


def _are_equal(a: Any, b: Any) -> bool:
    """Whether two calls, or parts of them, hold the same values."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a is b or torch.equal(a, b)
    if isinstance(a, BlockCall) and isinstance(b, BlockCall):
        return _are_equal(a.args, b.args) and _are_equal(a.kwargs, b.kwargs)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_are_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_are_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a is b or a == b)
