"""Writes the errors of caches as tables, JSON and figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from benchmarks.quality.cache_errors import FIRST_AFFECTED, CacheErrors, TileErrors, mean_over
from benchmarks.quality.cache_tables import (
    cache_cells,
    cache_conditions,
    cache_json,
    estimate_figure,
    exact_layers_of,
    grid,
)
from benchmarks.quality.token_scores import show
from benchmarks.results_file import Condition, Figure

EDGES = (FIRST_AFFECTED, 1024, 2048, 4096, 6144, 8192)
"""Positions between which errors are shown apart."""
_KINDS = ("static", "accumulated")


def norms_table(errors: Sequence[CacheErrors]) -> str:
    """The tables of predictions, of errors of keys, values and attention, and of both by place in the text and by layer."""
    first = errors[0]
    exact = exact_layers_of([each.cache for each in errors])
    about = f"{first.tokens} tokens that see a quantised tile, in {first.draws} draws{exact}"
    base = first.exact_perplexity()
    tables = [f"{about}; perplexity over the exact cache {show(base, '.3f')}", _predictions(errors)]
    if first.accumulated.keys:
        spreads = "norms of tokens vary by {:.1%}, standard deviations of channels by {:.1%}"
        tables.append("relative errors; in a tile of keys, " + spreads.format(*first.accumulated.spreads()))
        tables += [_tile_errors(errors), _by_place(errors), _by_layer(errors)]
    return "\n\n".join(tables)


def norms_figures(errors: Sequence[CacheErrors]) -> list[Figure]:
    """The figures of each cache's predictions, and of its static and accumulated errors if its tiles can be read."""
    figures = [estimate_figure("perplexity", "perplexity", 1, errors[0].exact_perplexity(), {"cache": "16 bits"})]
    for each in errors:
        about = {**cache_conditions(each.cache), "tokens": each.tokens, "draws": each.draws}
        mean, worst = each.divergence()
        figures += [
            estimate_figure("perplexity", "perplexity", 1, each.perplexity(), about),
            estimate_figure("more than 16 bits", "nats", 1, each.more_nats(), about),
            estimate_figure("mean KL", "nats", 1, mean, about),
            estimate_figure("KL, worst 5 %", "nats", 1, worst, about),
            Figure(name="same top token", value=100 * each.top1, unit="%", conditions=about),
        ]
        if (other := _rival(each, errors)) is not None:
            own = {**about, "against": other.cache.name}
            figures.append(estimate_figure("mean KL, difference", "nats", 1, each.more_divergence(other), own))
        figures += _place_figures(each, about)
        for kind, seen in zip(_KINDS, (each.static, each.accumulated), strict=True):
            for name, value in (seen.summary() or {}).items():
                figures.append(
                    Figure(name=f"error, {name}", value=value, unit="relative", conditions={**about, "kind": kind})
                )
    return figures


def norms_json(errors: Sequence[CacheErrors]) -> list[dict[str, Any]]:
    """Every number of the tables, as JSON."""
    rows = []
    for each in errors:
        mean, worst = each.divergence()
        other = _rival(each, errors)
        rows.append(
            {
                **cache_json(each.cache),
                "tokens": each.tokens,
                "draws": each.draws,
                "static": _errors_json(each.static),
                "accumulated": _errors_json(each.accumulated),
                "perplexity": vars(each.perplexity()),
                "exact_perplexity": vars(each.exact_perplexity()),
                "more_nats": vars(each.more_nats()),
                "mean_kl": vars(mean),
                "worst_kl": vars(worst),
                "more_kl_than_kvarn": None if other is None else vars(each.more_divergence(other)),
                "kl_by_place": [vars(mean_over(each.kl(a, b))) for a, b in _spans(each)],
                "top1": each.top1,
                "key_spreads": each.accumulated.spreads() if each.accumulated.keys else None,
            }
        )
    return rows


def _predictions(errors: Sequence[CacheErrors]) -> str:
    titles = ("perplexity", "nats more", "mean KL, nats", "worst 5 %", "same top token", "KL minus kvarn's")
    rows = [["cache", "bits K, V", "bytes", *titles]]
    for each in errors:
        mean, worst = each.divergence()
        other = _rival(each, errors)
        rows.append(
            [
                *cache_cells(each.cache),
                f"{each.perplexity().value:.3f}",
                show(each.more_nats(), "+.4f"),
                show(mean, ".2e"),
                show(worst, ".2e"),
                f"{100 * each.top1:.2f} %",
                "" if other is None else show(each.more_divergence(other), "+.1e"),
            ]
        )
    return grid(rows)


def _tile_errors(errors: Sequence[CacheErrors]) -> str:
    titles = ["key norm", "worst 5 %", "keys", "values", "attention", "magnitude", "keys of worst"]
    rows = [["cache", "", *titles]]
    for each in errors:
        for kind, seen in zip(_KINDS, (each.static, each.accumulated), strict=True):
            if (summary := seen.summary()) is not None:
                rows.append([each.cache.name, kind, *(f"{value:.4f}" for value in summary.values())])
    return grid(rows)


def _by_place(errors: Sequence[CacheErrors]) -> str:
    """The accumulated errors by place: KL, attention's outputs, key norms."""
    spans = _spans(errors[0])
    rows = [["positions", "", *(f"{begin} to {end}" for begin, end in spans)]]
    for each in errors:
        rows.append([each.cache.name, "mean KL", *(f"{mean_over(each.kl(*span)).value:.2e}" for span in spans)])
        if each.accumulated.keys:
            seen = each.accumulated
            rows.append(["", "attention", *(f"{seen.outputs_between(*span):.4f}" for span in spans)])
            rows.append(["", "key norm", *(f"{seen.key_norms_between(*span):.4f}" for span in spans)])
    return grid(rows)


def _by_layer(errors: Sequence[CacheErrors]) -> str:
    """Key norm errors by layer, static and accumulated, of the layers that are quantised."""
    rows = []
    for each in errors:
        for kind, seen in zip(_KINDS, (each.static, each.accumulated), strict=True):
            if seen.keys:
                rows.append([each.cache.name, kind, *(f"{value:.3f}" for value in seen.key_norms_by_layer())])
    return grid([["key norm by layer", "", *map(str, range(1, len(rows[0]) - 1))], *rows]) if rows else ""


def _rival(errors: CacheErrors, others: Sequence[CacheErrors]) -> CacheErrors | None:
    """KVarN's simulated cache with the same bits as another method's; None where there is none."""
    codec = errors.cache.codec
    if codec is None or codec.method == "kvarn":
        return None
    for other in others:
        own = other.cache.codec
        if own is not None and own.method == "kvarn" and (own.k_bits, own.v_bits) == (codec.k_bits, codec.v_bits):
            return other
    return None


def _spans(errors: CacheErrors) -> list[tuple[int, int]]:
    """The pairs of EDGES between which there are tokens; the last one ends with the texts."""
    end = max(each.begin + len(each.kl) for each in errors.scores)
    edges = [edge for edge in EDGES if edge < end] + [min(edge for edge in (*EDGES, end) if edge >= end)]
    return list(pairwise(edges))


def _place_figures(errors: CacheErrors, about: dict[str, Condition]) -> list[Figure]:
    figures = []
    for begin, end in _spans(errors):
        own: dict[str, Condition] = {**about, "positions": f"{begin} to {end}"}
        figures.append(estimate_figure("mean KL", "nats", 1, mean_over(errors.kl(begin, end)), own))
        if errors.accumulated.keys:
            value = errors.accumulated.outputs_between(begin, end)
            figures.append(Figure(name="error, outputs, accumulated", value=value, unit="relative", conditions=own))
    return figures


def _errors_json(errors: TileErrors) -> dict[str, Any] | None:
    summary = errors.summary()
    if summary is None:
        return None
    return {
        **summary,
        "outputs_by_layer": errors.outputs_by_layer(),
        "key_norms_by_layer": errors.key_norms_by_layer(),
        "worst_key_norms_by_layer": errors.worst_key_norms_by_layer(),
    }
