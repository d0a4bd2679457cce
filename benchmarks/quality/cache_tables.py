"""Writes the accuracy of caches as tables, JSON and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.quality.cache_accuracy import CacheAnswers, ComparedCache, compare, same_replies
from benchmarks.results_file import Condition, Figure
from enginewright.runtime.evaluation.intervals import Estimate


def accuracy_table(results: Sequence[CacheAnswers]) -> str:
    """The table of right answers for each cache, then that of paired differences."""
    kinds = list(results[0].accuracy_by_kind())
    rows = [["cache", "bits K, V", "bytes", "right", *kinds, "tokens", "cut off", "codec s of all s"]]
    for result in results:
        by_kind = result.accuracy_by_kind()
        rows.append(
            [
                *cache_cells(result.cache),
                _percent(result.accuracy()),
                *(_percent(by_kind[kind]) for kind in kinds),
                str(result.answers.tokens),
                str(result.cut),
                f"{result.codec_seconds:.0f} of {result.answers.seconds:.0f}",
            ]
        )
    head = f"{len(results[0].right)} problems{exact_layers_of([r.cache for r in results])}; bytes: of a quantised token in one KV head; [low, high]: 95 % interval"
    tables = [head, grid(rows)]
    compared = [["minus", "", "points", "McNemar p", "same reply"]]
    for ours, theirs in pairs_of(results):
        points, probability = compare(ours, theirs)
        numbers = [_points(points), f"{probability:.2g}", f"{100 * same_replies(ours, theirs):.1f} %"]
        compared.append([ours.cache.name, theirs.cache.name, *numbers])
    return "\n\n".join([*tables, grid(compared)] if len(compared) > 1 else tables)


def accuracy_json(results: Sequence[CacheAnswers]) -> dict[str, Any]:
    """Everything that was measured, including whether each problem was answered right."""
    return {
        "kinds": results[0].kinds,
        "caches": [
            {
                **cache_json(result.cache),
                "accuracy": vars(result.accuracy()),
                "accuracy_by_kind": {kind: vars(share) for kind, share in result.accuracy_by_kind().items()},
                "right": result.right,
                "tokens": result.answers.tokens,
                "cut": result.cut,
                "seconds": result.answers.seconds,
                "codec_seconds": result.codec_seconds,
            }
            for result in results
        ],
        "differences": [
            {
                "of": ours.cache.name,
                "against": theirs.cache.name,
                "points": vars(compare(ours, theirs)[0]),
                "mcnemar": compare(ours, theirs)[1],
                "same_reply": same_replies(ours, theirs),
            }
            for ours, theirs in pairs_of(results)
        ],
    }


def accuracy_figures(results: Sequence[CacheAnswers]) -> list[Figure]:
    """The figures of right answers for each cache, and of the paired differences."""
    figures = []
    for result in results:
        about: dict[str, Condition] = {**cache_conditions(result.cache), "problems": len(result.right)}
        figures.append(estimate_figure("right", "%", 100, result.accuracy(), about))
    for ours, theirs in pairs_of(results):
        points, probability = compare(ours, theirs)
        pair: dict[str, Condition] = {"cache": ours.cache.name, "minus": theirs.cache.name, "McNemar p": probability}
        figures.append(estimate_figure("right, difference", "points", 100, points, pair))
    return figures


def pairs_of(results: Sequence[CacheAnswers]) -> Iterator[tuple[CacheAnswers, CacheAnswers]]:
    """The pairs to compare: every cache with fp16, and every cache of as many bits with KVarN's simulated one."""
    plain = [result for result in results if result.cache.name == "fp16"]
    released = [r for r in results if r.cache.codec is not None and r.cache.codec.method == "kvarn"]
    for theirs in [*plain, *released]:
        for ours in results:
            if ours is not theirs and (theirs in plain or _comparable(ours.cache, theirs.cache)):
                yield ours, theirs


def _comparable(ours: ComparedCache, theirs: ComparedCache) -> bool:
    """Whether `ours`, simulated or an engine's own cache, holds as many bits as the simulated `theirs`."""
    if ours.codec is None:
        return ours.name != "fp16" and ours.bytes_per_token == theirs.bytes_per_token
    assert theirs.codec is not None
    return (ours.codec.k_bits, ours.codec.v_bits) == (theirs.codec.k_bits, theirs.codec.v_bits)


def exact_layers_of(caches: Sequence[ComparedCache]) -> str:
    """The words for the first layers that some of the caches leave exact; empty where none does."""
    layers = {cache.codec.exact_layers for cache in caches if cache.codec is not None} - {0}
    return "".join(f", exact in the first {count} of {len(caches[0].manifest.cache.layers)} layers" for count in layers)


def cache_cells(cache: ComparedCache) -> list[str]:
    """A table's cells for the cache itself: its name, the bits of keys and values, the bytes of a token in one head."""
    keys, values = cache.bits
    bits = f"{keys:.2f}" if cache.codec is None else f"{keys:.2f} {values:.2f}"
    return [cache.name, bits, f"{cache.bytes_per_token:.0f}"]


def cache_conditions(cache: ComparedCache) -> dict[str, Condition]:
    """A figure's conditions that tell the cache from others."""
    about: dict[str, Condition] = {"cache": cache.name, "bytes per token and head": cache.bytes_per_token}
    if cache.codec is not None and cache.codec.exact_layers:
        about["exact layers"] = cache.codec.exact_layers
    if cache.codec is not None and not cache.codec.windowed:
        about["layers with a window"] = "exact"
    return about


def estimate_figure(name: str, unit: str, scale: float, found: Estimate, about: dict[str, Condition]) -> Figure:
    """The figure of an estimate; scale: factor of the value, so that it is in `unit`."""
    known = found.low is not None and found.high is not None
    interval = (scale * (found.low or 0.0), scale * (found.high or 0.0)) if known else None
    return Figure(name=name, value=scale * found.value, unit=unit, conditions=about, interval=interval)


def cache_json(cache: ComparedCache) -> dict[str, Any]:
    """A cache's name, bits and bytes."""
    keys, values = cache.bits
    return {"name": cache.name, "key_bits": keys, "value_bits": values, "bytes_per_token": cache.bytes_per_token}


def _percent(share: Estimate) -> str:
    assert share.low is not None and share.high is not None
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _points(difference: Estimate) -> str:
    assert difference.low is not None and difference.high is not None
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows with aligned columns: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) if place else c.ljust(w) for place, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
