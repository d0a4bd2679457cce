"""The ways in which the policy `evict` shares one number of tokens among layers and KV heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.cache.policies import reasonalloc
from enginewright.runtime.cache.policies.budgets import ada_budgets, guard, pyramid_budgets, rescale
from enginewright.runtime.cache.policy import NEVER, Ints

if TYPE_CHECKING:
    from enginewright.runtime.cache.policies.evict import EvictConfig

Floats = NDArray[np.float32]
Make: TypeAlias = "Callable[[EvictConfig, Ints], Allocation]"

UNLIMITED = 1 << 40
"""A budget that no request reaches, and whose sums with others are exact."""


class Allocation(Protocol):
    """Budgets of an engine.

    of_layers[layers] int64: tokens of each layer, over all heads that evict.
    whole_heads[layers] int64: heads of each layer that keep every token.
    most_of_heads[layers, heads] int64: the most tokens of each head at any time; UNLIMITED or more where it keeps all.
    """

    @property
    def of_layers(self) -> Ints: ...

    @property
    def whole_heads(self) -> Ints: ...

    @property
    def most_of_heads(self) -> Ints: ...

    def of_heads(self, stored: Ints, scores: Floats, recent: int) -> Ints:
        """Return the budget of each head at an eviction, int64 [layers, heads].

        stored[layers, heads]: tokens that each head has.
        scores[layers, heads, n]: of its tokens; the last `recent` of those that it has do not count.
        """
        ...

    def room(self, stored: Ints) -> int:
        """Return how many more tokens a row that stores `stored` [layers, heads] can take before anything is over its budget."""
        ...


class Fixed:
    """Budgets that do not depend on scores: one for each layer and head, UNLIMITED for a head that keeps every token."""

    def __init__(self, budgets: Ints, heads: Ints) -> None:
        has = np.arange(budgets.shape[1]) < heads[:, None]
        self.most_of_heads: Ints = np.where(has, budgets, 0)
        is_whole = self.most_of_heads >= UNLIMITED
        self.whole_heads: Ints = is_whole.sum(axis=1)
        self.of_layers: Ints = np.where(is_whole, 0, self.most_of_heads).sum(axis=1)
        self._limits = np.where(has & ~is_whole, budgets, NEVER)
        self._heads = heads

    def of_heads(self, stored: Ints, scores: Floats, recent: int) -> Ints:
        """Return the budgets."""
        return self.most_of_heads

    def room(self, stored: Ints) -> int:
        """Return what is left to the head that is nearest to its budget."""
        return int((self._limits - stored).min())


class ByScores:
    """Budgets of layers that their heads share anew at each eviction, by their scores."""

    def __init__(self, of_layers: Ints, heads: Ints, share: Callable[[Ints, Sequence[Floats], int], Ints]) -> None:
        self.of_layers = of_layers
        self.whole_heads: Ints = np.zeros_like(of_layers)
        self._heads = heads
        self._share = share
        has = np.arange(int(heads.max())) < heads[:, None]
        self.most_of_heads: Ints = np.where(has, of_layers[:, None], 0)

    def of_heads(self, stored: Ints, scores: Floats, recent: int) -> Ints:
        """Return the heads' shares; what they have, as long as their layer is within its budget."""
        budgets = stored.copy()
        for layer in np.flatnonzero(stored.sum(axis=1) > self.of_layers).tolist():
            own = stored[layer, : self._heads[layer]]
            ends = np.maximum(own - recent, 0).tolist()
            each = [line[:end] for line, end in zip(scores[layer], ends, strict=False)]
            budgets[layer, : len(own)] = self._share(own, each, int(self.of_layers[layer]))
        return budgets

    def room(self, stored: Ints) -> int:
        """Return what is left to the layer that is nearest to its budget, for each of its heads."""
        return int(((self.of_layers - stored.sum(axis=1)) // self._heads).min())


def spread(of_layers: Ints, heads: Ints) -> Fixed:
    """Return budgets that share each layer's equally among its heads; the first ones get what is left over."""
    places = np.arange(int(heads.max()))
    each, left = of_layers // heads, of_layers % heads
    return Fixed(each[:, None] + (places < left[:, None]), heads)


def _uniform(config: EvictConfig, heads: Ints) -> Allocation:
    return spread(config.budget * heads, heads)


def _pyramid(config: EvictConfig, heads: Ints) -> Allocation:
    each = rescale(pyramid_budgets(config.budget, config.recent, len(heads)), config.budget * len(heads))
    return spread(np.maximum(each, config.recent + config.sinks + 1) * heads, heads)


def _ada(config: EvictConfig, heads: Ints) -> Allocation:
    def share(stored: Ints, scores: Sequence[Floats], total: int) -> Ints:
        return guard(ada_budgets(scores, config.budget, config.recent), config.recent + config.sinks + 1)

    return ByScores(config.budget * heads, heads, share)


def _reasonalloc(config: EvictConfig, heads: Ints) -> Allocation:
    of_layers = config.budget * heads
    if config.demand:
        if len(config.demand) != len(heads):
            raise ValueError(
                f"demand: got {len(config.demand)} layers, expected {len(heads)}, those without a window; make the curve anew"
            )
        if len(set(heads.tolist())) > 1:
            raise ValueError(
                f"demand: got layers of {' and '.join(map(str, sorted(set(heads.tolist()))))} KV heads, expected one number; "
                "build without a curve"
            )
        demand = np.array(config.demand, np.float64)
        of_layers = reasonalloc.layer_budgets(demand, config.budget, int(heads[0]), strict=config.strict)
        of_layers = guard(of_layers, (config.recent + config.sinks + 1) * int(heads[0]))
    if not config.heads:
        return spread(of_layers, heads)

    def share(stored: Ints, scores: Sequence[Floats], total: int) -> Ints:
        if config.score_norm == "times_len":
            scores = [each * np.float32(count) for each, count in zip(scores, stored.tolist(), strict=True)]
        return reasonalloc.head_budgets(scores, total, least=config.recent + config.sinks + 1)

    return ByScores(of_layers, heads, share)


def _duo(config: EvictConfig, heads: Ints) -> Allocation:
    if len(config.whole) != len(heads):
        raise ValueError(
            f"whole: got {len(config.whole)} layers, expected {len(heads)}, those without a window; make the file of heads anew"
        )
    budgets: Ints = np.full((len(heads), int(heads.max())), config.budget, np.int64)
    for layer, own in enumerate(config.whole):
        if wrong := [head for head in own if not 0 <= head < heads[layer]]:
            raise ValueError(
                f"whole: got head {wrong[0]}, expected 0 to {heads[layer] - 1}; make the file of heads anew"
            )
        budgets[layer, list(own)] = UNLIMITED
    return Fixed(budgets, heads)


ALLOCATIONS: dict[str, Make] = {
    "uniform": _uniform,
    "pyramid": _pyramid,
    "ada": _ada,
    "reasonalloc": _reasonalloc,
    "duo": _duo,
}
"""The allocations by name: the same everywhere; PyramidKV; AdaKV; ReasonAlloc; DuoAttention."""
