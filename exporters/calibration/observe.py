"""Shows what enters a model's linear layers while it reads texts, with one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from enginewright.exporters.calibration.block_calls import record_calls
from enginewright.exporters.calibration.blocks import Blocks, load_blocks
from enginewright.exporters.calibration.fast_linear import FastLinear
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError

Record = Callable[[str, int, torch.Tensor], None]
"""Called as record(parameter, batch, x): the name of a layer's weight in the model, the number of the batch, and the layer's
input, x float32 [b, T, n]; [tokens, n] of a layer that reads only tokens which are routed to it."""


def observe(
    checkpoint: Checkpoint,
    weights: Mapping[str, Weight],
    batches: Sequence[torch.Tensor],
    record: Record,
    *,
    wanted: Callable[[str], bool] = lambda _: True,
    max_context: int | None = None,
) -> None:
    """Run the decoder over batches of token ids, int64 [b, T], and show `record` the inputs of its linear layers.

    The order is block by block, in each batch by batch, in each as the layers run. In memory are one block, in float32, and
    the hidden states of all batches. Texts of different lengths are batches of their own, so that nothing is padded.

    weights: of the model, by parameter name.
    wanted: says by the name of a layer's weight whether its inputs are shown.
    max_context: of the engine, for rotary embeddings that depend on it; None: the model's own.

    Raises:
        ExportError: there are no tokens, or a hidden state is not finite.
        UnsupportedError: the model's blocks cannot be run one by one.
    """
    blocks = load_blocks(checkpoint, max_context)

    def shown(loaded: nn.Module, block: int, batch: int) -> AbstractContextManager[None]:
        layers = {name: blocks.parameter(block, f"{name}.weight") for name in blocks.linears(block, ())}
        return _shown(
            loaded, {name: parameter for name, parameter in layers.items() if wanted(parameter)}, batch, record
        )

    run_blocks(blocks, weights, batches, shown)


def run_blocks(
    blocks: Blocks,
    weights: Mapping[str, Weight],
    batches: Sequence[torch.Tensor],
    around: Callable[[nn.Module, int, int], AbstractContextManager[None]],
) -> None:
    """Run the decoder over batches of token ids, int64 [b, T], one block in memory at a time.

    The order is block by block, in each batch by batch. In memory are one block, in float32, and the hidden states of all
    batches.

    around: called as around(loaded, block, batch) with the block, its number and that of the batch; the context that it
        returns is entered while the block runs.

    Raises:
        ExportError: there are no tokens, or a hidden state is not finite.
        UnsupportedError: the model's blocks cannot be run one by one.
    """
    if not batches or any(batch.dim() != 2 or not batch.numel() for batch in batches):
        raise ExportError("calibration: tokens: got none, expected batches [sequences, length] of at least one token")
    states: list[torch.Tensor] = []
    calls = record_calls(blocks, weights, batches, torch.float32, lambda _, hidden: states.append(hidden))
    device = batches[0].device
    for block in tqdm(range(len(blocks.modules)), desc="observing", unit="block", disable=None):
        loaded = blocks.load(block, weights, torch.float32, device)
        for number, batch in enumerate(batches):
            with torch.no_grad(), FastLinear(), around(loaded, block, number):
                states[number] = calls[batch.shape[0], batch.shape[1]][block].run(loaded, states[number])
            if not bool(states[number].isfinite().all()):
                raise ExportError(
                    f"{blocks.prefix}.{block}: its output is NaN or infinite; expected finite numbers, do the weights and "
                    "config.json belong together?"
                )


@contextmanager
def _shown(block: nn.Module, layers: Mapping[str, str], batch: int, record: Record) -> Iterator[None]:
    """Call `record` before each of these layers of the block, given by name with their parameters."""

    def show(parameter: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        record(parameter, batch, inputs[0])

    hooks = [
        block.get_submodule(name).register_forward_pre_hook(partial(show, parameter))
        for name, parameter in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
