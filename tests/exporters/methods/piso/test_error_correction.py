"""Tests of error correction against a greedy float64 reference that solves for all remaining weights after each column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from enginewright.exporters.methods.piso.quantize_layer import LayerResult, LayerSettings, quantize_layer
from enginewright.exporters.methods.piso.solver import best_cells, int_grid

pytestmark = pytest.mark.native
Array = NDArray[np.float64]
RATIOS = {a / b for a in range(1, 9) for b in range(1, 9)}  # scales of the same weights, if codes have a common factor


def moments(d: int, seed: int, tokens: int | None = None) -> tuple[Array, Array, Array]:
    """Weights [4, d], H and G of inputs that differ from the float model's."""
    rng = np.random.default_rng(seed)
    n = tokens or 3 * d + 5
    x = rng.standard_normal((n, d)) * np.exp(rng.standard_normal(d)) + rng.standard_normal((n, 1))
    rough = x + 0.3 * rng.standard_normal(x.shape)
    w = rng.standard_normal((4, d)) * 10.0 ** rng.integers(-3, 3)
    return w, rough.T @ rough, rough.T @ x


def order_of(h: Array, size: int | None) -> list[int]:
    """The columns, or the groups and then the columns of each, that fire most come first."""
    columns = sorted(range(len(h)), key=lambda i: -h[i, i])
    if size is None:
        return columns
    mass = [h.diagonal()[i : i + size].sum() for i in range(0, len(h), size)]
    return sorted(columns, key=lambda i: (-mass[i // size], i // size, -h[i, i]))


def scale_of(settings: LayerSettings, part: Array, p: Array, block: Array) -> float:
    """One row's scale of one group, by the tested solver."""
    grid = int_grid(settings.bits, settings.narrow)
    if settings.scales == "absmax":
        return float(np.abs(part).max() / np.abs(grid).max())
    if settings.scales == "mse":
        p, block = part, np.eye(len(part))
    tensors = [torch.tensor(a) for a in (part[None], p[None], block, grid)]
    return float(best_cells(*tensors, signed=settings.signed, refit=settings.refit).scales[0])


def walk(
    w: Array,
    h: Array,
    g: Array,
    settings: LayerSettings,
    damping: float,
    codes: Array,
    scales: Array,
    *,
    frozen: bool = False,
) -> None:
    """Check the codes and scales of one row, column by column, each given those before it.

    A column is rounded where the error of all others as they are is least; then all later columns move to the minimum of
    v' H v - 2 v' G w + damping |v - w|^2, solved for anew. Codes may differ on ties alone: the best scales put weights there.
    """
    d = len(w)
    size = settings.group_size or d
    grid = int_grid(settings.bits, settings.narrow)
    order = order_of(h, None if frozen else size)
    damped = h + damping * np.eye(d)
    v = w.copy()
    for at, t in enumerate(order):
        state = v.copy()
        if at == 0:
            state[t] += (g @ w - h @ v)[t] / h[t, t]
        s = scales[t // size]
        if not frozen and at % size == 0:
            group = np.arange(t // size * size, (t // size + 1) * size)
            expected = scale_of(settings, state[group], *terms(w, h, g, v, state, group, settings, first=at == 0))
            if size > 1:  # one weight is any code times its own scale
                assert min(abs(s / expected * ratio - 1) for ratio in RATIOS) < 1e-6
        ideal = np.clip(state[t] / s, grid[0], grid[-1])
        assert abs(codes[t] - ideal) <= 0.5 + 1e-5, f"column {t}, {at}th"
        v[t] = s * codes[t]
        done, rest = order[: at + 1], order[at + 1 :]
        pull = (g @ w + damping * w)[rest] - damped[np.ix_(rest, done)] @ v[done]
        v[rest] = np.linalg.solve(damped[np.ix_(rest, rest)], pull)


def terms(
    w: Array, h: Array, g: Array, v: Array, state: Array, group: Array, settings: LayerSettings, *, first: bool
) -> tuple[Array, Array]:
    """The linear and the quadratic term of a group's scale, all other groups as they are in v."""
    block = h[np.ix_(group, group)]
    if settings.diagonal:
        diagonal = block.diagonal()
        return (g.diagonal()[group] * w[group] if first else diagonal * state[group]), np.diag(diagonal)
    if not settings.sequential:
        return (g[np.ix_(group, group)] @ w[group] if first else block @ state[group]), block
    others = np.setdiff1d(np.arange(len(w)), group)
    return g[group] @ w - h[np.ix_(group, others)] @ v[others], block


def check(w: Array, h: Array, g: Array, settings: LayerSettings, found: LayerResult, *, frozen: bool = False) -> None:
    """Walk all rows with the damping of the settings' correction."""
    if settings.correction == "gptq":
        g = h
        damping = 0.01 * h.diagonal().mean()
    else:
        damping = 1e-6 * np.linalg.eigvalsh(h)[-1]
    for row, codes, scales in zip(w, found.codes.double().numpy(), found.scales.double().numpy(), strict=True):
        walk(row, h, g, settings, damping, codes, scales, frozen=frozen)


def run(w: Array, h: Array, g: Array | None, settings: LayerSettings, scales: Any = None) -> LayerResult:
    cross = None if g is None else torch.tensor(g)
    return quantize_layer(torch.tensor(w), torch.tensor(h), cross, settings, scales=scales)


SETTINGS = [
    {},
    {"scales": "absmax"},
    {"scales": "mse", "bits": 3},
    {"bits": 2},
    {"bits": 2, "sequential": False},
    {"bits": 3, "diagonal": True},
    {"bits": 2, "signed": True},
    {"bits": 3, "narrow": True, "refit": True},
    {"bits": 8},
]


def cases() -> Iterator[tuple[int, LayerSettings, int]]:
    for index, change in enumerate(SETTINGS):
        for d, size in ((1, 1), (2, 1), (7, 0), (12, 3), (12, 12), (13, 1), (20, 5)):
            for correction in ("gptq", "qronos"):
                yield (
                    index,
                    LayerSettings(**{"group_size": size, "correction": correction, "signed": False, **change}),
                    d,
                )


@pytest.mark.parametrize(("seed", "settings", "d"), list(cases()), ids=str)
def test_greedy_rounding_agrees(seed: int, settings: LayerSettings, d: int) -> None:
    """Scales fitted group by group; and the same scales as frozen ones, which changes the order of columns."""
    w, h, g = moments(d, seed)
    found = run(w, h, g, settings)
    check(w, h, g, settings, found)
    frozen = run(w, h, g, settings, found.scales)
    assert (frozen.scales == found.scales).all()
    check(w, h, g, settings, frozen, frozen=True)


@pytest.mark.parametrize(("d", "size"), [(300, 20), (300, 150), (262, 0), (257, 1), (144, 48)])
@pytest.mark.parametrize("correction", ["gptq", "qronos"])
def test_greedy_rounding_agrees_across_panels(d: int, size: int, correction: Any) -> None:
    """More columns than a block, groups larger than one, and groups that blocks are no multiple of."""
    w, h, g = moments(d, d)
    settings = LayerSettings(group_size=size, correction=correction, signed=False)
    check(w[:1], h, g, settings, run(w[:1], h, g, settings))
