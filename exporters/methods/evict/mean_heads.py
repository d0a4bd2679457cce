"""Estimates the gates of KV heads without training: by the attention between a head's mean query and its mean key.

The means are over texts, before rotation. They are repeated as if a text consisted of them, so what differs between tokens is
their rotation alone. A head whose last query then attends to the first tokens looks far back by its nature, and one that
attends to the newest ones does not. The gate is the mean of the cumulated weights, from the first token on: 1 where the
first token gets all, and near 0 where the newest does.

Source: an experimental estimate of NVIDIA's kvpress, github.com/NVIDIA/kvpress; repeated texts and their number are from there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice

import torch

from enginewright.exporters.calibration.blocks import load_blocks
from enginewright.exporters.calibration.observe import run_blocks
from enginewright.exporters.methods.evict.head_gates import Gates
from enginewright.exporters.methods.reasonalloc.counting_attention import ATTENTION, watched
from enginewright.exporters.methods.reasonalloc.measure_demand import MeasuredModel
from enginewright.exporters.methods.reasonalloc.written_texts import WrittenText
from enginewright.runtime.errors import UnsupportedError

ROTATION = "apply_rotary_pos_emb"
"""The function by which transformers' models rotate queries and keys, one in each model's module."""
Pair = tuple[torch.Tensor, torch.Tensor]
Rotate = Callable[..., Pair]


@dataclass
class _Reading:
    """A pass over a text, from which a block's queries and keys are added up; it looks at no weights.

    family: the model's type.
    sums: of queries and of keys, [heads, D], over the tokens of the block's texts so far; None before the first.
    tokens: their number.
    """

    family: str
    sums: Pair | None = None
    tokens: int = 0

    def see(self, layer: int, begin: int, weights: torch.Tensor, sink: torch.Tensor) -> None:
        """Look at nothing."""

    def rotate(self, own: Rotate, query: torch.Tensor, key: torch.Tensor, *others: object, **named: object) -> Pair:
        """Rotate the queries and keys [1, heads, T, D], and add them up."""
        sums, before = (query[0].sum(1), key[0].sum(1)), self.sums
        self.sums = sums if before is None else (before[0] + sums[0], before[1] + sums[1])
        self.tokens += query.shape[2]
        return own(query, key, *others, **named)

    def repeat(self, own: Rotate, query: torch.Tensor, key: torch.Tensor, *others: object, **named: object) -> Pair:
        """Rotate the means in the place of each query and key."""
        assert self.sums is not None, "texts come first"
        mean_query, mean_key = (sums[None, :, None] / self.tokens for sums in self.sums)
        return own(mean_query.expand_as(query), mean_key.expand_as(key), *others, **named)


@dataclass
class _LastQuery:
    """The pass over repeated means: of its last query, the mean of the cumulated weights of each KV head, by layer.

    length: the number of tokens.
    """

    family: str
    length: int
    gates: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def see(self, layer: int, begin: int, weights: torch.Tensor, sink: torch.Tensor) -> None:
        """Note the gates where the last query is among these."""
        if begin + weights.shape[2] == self.length:
            mean = weights[:, :, -1].double().mean(1)  # over the query heads of a KV head
            self.gates[layer] = tuple(mean.cumsum(-1).mean(-1).clamp(0, 1).tolist())


def estimate_gates(model: MeasuredModel, texts: Sequence[WrittenText], repeats: int) -> Gates:
    """Return the gates of each layer's KV heads; None for a layer with a window. In memory are one block and the texts' states.

    repeats: how often the means are repeated.

    Raises:
        ExportError: a hidden state is not finite.
        UnsupportedError: the model's blocks cannot be run one by one, or rotate no whole queries.
    """
    blocks = load_blocks(model.checkpoint, None, attention=ATTENTION)
    family = model.checkpoint.config.model_type
    last = _LastQuery(family, repeats)
    readings = [_Reading(family) for _ in blocks.modules]

    @contextmanager
    def around(block: torch.nn.Module, number: int, batch: int) -> Iterator[None]:
        reading, is_last = readings[number], batch == len(texts)
        with ExitStack() as stack:
            stack.enter_context(_rotated(block, family, reading.repeat if is_last else reading.rotate))
            stack.enter_context(watched(last if is_last else reading))
            yield
        if reading.sums is None or reading.sums[0].shape[-1] != _head_dim(block, reading.sums[0].shape[-1]):
            raise UnsupportedError(
                f"{family}: layer {number}: got queries of which not all is rotated, expected a rotation of the whole head; "
                "give gates that were trained"
            )

    filler = tuple(islice(cycle(texts[0].ids), repeats))
    run_blocks(blocks, model.weights, [torch.tensor([ids]) for ids in (*(each.ids for each in texts), filler)], around)
    return tuple(last.gates.get(layer) for layer in range(model.layers))


@contextmanager
def _rotated(block: torch.nn.Module, family: str, rotate: Rotate) -> Iterator[None]:
    """Let `rotate` stand in for the function of the block's module, which it gets first."""
    module = sys.modules[type(block).__module__]
    own = getattr(module, ROTATION, None)
    if own is None:
        raise UnsupportedError(
            f"{family}: got a model without rotary positions, expected one; give gates that were trained"
        )
    setattr(module, ROTATION, partial(rotate, own))
    try:
        yield
    finally:
        setattr(module, ROTATION, own)


def _head_dim(block: torch.nn.Module, default: int) -> int:
    """The size of a head of the block's attention."""
    found = (getattr(each, "head_dim", None) for each in block.modules())
    return next((size for size in found if isinstance(size, int)), default)
