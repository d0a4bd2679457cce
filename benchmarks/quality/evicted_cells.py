"""The measurements of cache policies on texts, and their table and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.cache_tables import estimate_figure
from benchmarks.quality.token_scores import mean_of, show
from benchmarks.results_file import Condition, Figure
from enginewright.exporters.recipe import parse_method
from enginewright.runtime.evaluation.intervals import Estimate

FULL = "full"


@dataclass(frozen=True, kw_only=True)
class TextCell:
    """The measurements of a policy, by text; `evicted_texts` creates it, --json keeps it.

    windows: tokens of each text.
    tokens: scored tokens.
    nats, exact_nats: sums of the negative log-likelihood, and of that over the full cache.
    kl: sums of the KL divergence from the full cache.
    queries: sampled queries.
    mass: sums over them of the kept share of attention, each the mean over layers and heads.
    heads: of each layer and KV head, the mean kept share over all texts.
    peaks: the most bytes of tiles that were held, by window.
    """

    windows: list[int]
    tokens: list[int]
    nats: list[float]
    exact_nats: list[float]
    kl: list[float]
    queries: list[int]
    mass: list[float]
    heads: list[list[float]]
    peaks: dict[str, int]

    @property
    def perplexity(self) -> Estimate:
        """The perplexity."""
        return mean_of(self.nats, self.tokens).map(np.exp)

    @property
    def mean_kl(self) -> Estimate:
        """The mean KL divergence in nats."""
        return mean_of(self.kl, self.tokens)

    @property
    def mean_mass(self) -> Estimate:
        """The mean share of attention that is kept."""
        return mean_of(self.mass, self.queries)

    @property
    def peak(self) -> int:
        """The most bytes that the longest window held."""
        return self.peaks[str(max(self.windows))]

    def kl_minus(self, other: TextCell) -> Estimate:
        """The mean KL divergence minus that of another cell, on the same texts."""
        return mean_of([a - b for a, b in zip(self.kl, other.kl, strict=True)], self.tokens)

    def mass_minus(self, other: TextCell) -> Estimate:
        """The mean kept share minus that of another cell, on the same texts."""
        return mean_of([a - b for a, b in zip(self.mass, other.mass, strict=True)], self.queries)

    def kl_of(self, window: int) -> Estimate:
        """The mean KL divergence on the windows of one length."""
        own = [index for index, each in enumerate(self.windows) if each == window]
        return mean_of([self.kl[index] for index in own], [self.tokens[index] for index in own])


def read_cells(file: Path) -> dict[str, TextCell]:
    """The cells of an earlier run; none if there is no file."""
    return {name: TextCell(**cell) for name, cell in json.loads(file.read_text()).items()} if file.is_file() else {}


def write_cells(file: Path, done: dict[str, TextCell]) -> None:
    """Write the cells completely or not at all."""
    staged = file.with_name(file.name + ".part")
    staged.write_text(json.dumps({name: vars(cell) for name, cell in done.items()}))
    staged.replace(file)


def compared_with(policy: str, policies: Sequence[str]) -> str | None:
    """The first policy with the same budget, which differences are from; None for itself and for the full cache."""
    if policy == FULL:
        return None
    first = next(each for each in policies if each != FULL and budget_of(each) == budget_of(policy))
    return None if first == policy else first


def budget_of(policy: str) -> int:
    """The budget of a policy's options."""
    config: Any = parse_method(f"evict:{policy}").config
    return int(config.budget)


def table(cells: dict[str, TextCell]) -> str:
    """The measurements as a table."""
    lines = ["| policy | perplexity | KL, nats | minus the first of its budget | kept attention, % | peak MB |"]
    lines.append("|---" * 6 + "|")
    for name, cell in cells.items():
        other = compared_with(name, list(cells))
        row = [name, show(cell.perplexity, ".3f"), show(cell.mean_kl, ".4f")]
        row.append("" if other is None else show(cell.kl_minus(cells[other]), "+.4f"))
        row += [show(percent(cell.mean_mass), ".2f"), f"{cell.peak / 1e6:.1f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def percent(share: Estimate) -> Estimate:
    return share.map(lambda each: 100 * each)


def figures_of(cells: dict[str, TextCell]) -> list[Figure]:
    """The figures of the table, and KL by the length of windows."""
    found = []
    for name, cell in cells.items():
        about: dict[str, Condition] = {"policy": name, "windows": len(cell.windows), "tokens": sum(cell.tokens)}
        found.append(estimate_figure("perplexity", "perplexity", 1, cell.perplexity, about))
        found.append(estimate_figure("kept attention", "%", 100, cell.mean_mass, about))
        for window, peak in cell.peaks.items():
            of: dict[str, Condition] = {**about, "window": int(window)}
            found.append(Figure(name="peak of the cache", value=peak / 1e6, unit="MB", conditions=of))
        if name == FULL:
            continue
        found.append(estimate_figure("mean KL", "nats", 1, cell.mean_kl, about))
        for size in dict.fromkeys(cell.windows):
            found.append(estimate_figure("mean KL", "nats", 1, cell.kl_of(size), {**about, "window": size}))
        if (other := compared_with(name, list(cells))) is not None:
            pair: dict[str, Condition] = {**about, "minus": other}
            found.append(estimate_figure("mean KL, difference", "nats", 1, cell.kl_minus(cells[other]), pair))
            kept = cell.mass_minus(cells[other])
            found.append(estimate_figure("kept attention, difference", "points", 100, kept, pair))
    return found
