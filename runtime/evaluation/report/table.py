"""A report as aligned text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enginewright.runtime.evaluation.intervals import Estimate
from enginewright.runtime.evaluation.report.engine_report import Difference, EngineReport, Report


def render(report: Report) -> str:
    """Return a headline, a row for each engine, and a row for each comparison with the first engine."""
    parts = [_headline(report), _grid(_engine_rows(report))]
    compared = [engine for engine in report.engines if engine.agreement or engine.difference]
    if compared:
        parts.append(_grid(_comparison_rows(report.engines[0].name, compared)))
    return "\n\n".join(parts)


def _headline(report: Report) -> str:
    drawn = ", ".join(f"{count} {kind}" for kind, count in report.drawn.items())
    source = f"{report.level} problems" if report.data is None else report.data
    return (
        f"{report.suite}, {source}: {drawn}; seed {report.seed}; "
        f"[low, high] is the {100 * report.confidence:.0f} % interval"
    )


def _engine_rows(report: Report) -> list[list[str]]:
    first = report.engines[0]
    if first.accuracy is not None:
        titles = ["right", *first.accuracy.kinds, "tokens", "cut off"]
        rows = [_accuracy_cells(engine) for engine in report.engines]
        if any(engine.accuracy and engine.accuracy.guessed for engine in report.engines):
            titles.append("guesses, agreed")
            rows = [[*row, _guesses(engine)] for engine, row in zip(report.engines, rows, strict=True)]
    else:
        titles = ["perplexity", "nats per token", "bits per byte", "tokens"]
        rows = [_likelihood_cells(engine) for engine in report.engines]
    header = ["engine", *titles, "MB per token", "tokens per second"]
    return [
        header,
        *(
            [
                engine.name + (" (reference)" if engine.name == report.reference else ""),
                *cells,
                f"{engine.bytes_per_token / 1e6:.3g}",
                f"{engine.timing.tokens_per_second:.0f}",
            ]
            for engine, cells in zip(report.engines, rows, strict=True)
        ),
    ]


def _accuracy_cells(engine: EngineReport) -> list[str]:
    accuracy = engine.accuracy
    assert accuracy is not None
    return [
        _interval(accuracy.overall, _percent) + " %",
        *(f"{_percent(share.value)} %" for share in accuracy.kinds.values()),
        str(accuracy.tokens_generated),
        str(accuracy.finish_reasons.get("length", 0)),
    ]


def _guesses(engine: EngineReport) -> str:
    accuracy = engine.accuracy
    assert accuracy is not None
    return f"{accuracy.guessed}, {_percent(accuracy.agreed / accuracy.guessed)} %" if accuracy.guessed else "-"


def _likelihood_cells(engine: EngineReport) -> list[str]:
    likelihood = engine.likelihood
    assert likelihood is not None
    estimates = (likelihood.perplexity, likelihood.nats, likelihood.bits_per_byte)
    return [*(_interval(estimate, "{:.4g}".format) for estimate in estimates), str(likelihood.tokens)]


def _comparison_rows(against: str, engines: Sequence[EngineReport]) -> list[list[str]]:
    rows: list[dict[str, str]] = []
    for engine in engines:
        cells = {f"against {against}": engine.name}
        if engine.difference is not None:
            cells |= _difference_cells(engine.difference)
        if (agreement := engine.agreement) is not None:
            cells["mean KL, nats"] = _interval(agreement.mean_kl, "{:.1e}".format)
            cells["worst 5 %"] = f"{agreement.worst_kl.value:.1e}"
            cells["same top token"] = f"{100 * agreement.top1.value:.2f} %"
            if agreement.answers is not None and agreement.never_parts is not None:
                cells["same answer"] = f"{_percent(agreement.answers.value)} %"
                cells["same reply"] = f"{_percent(agreement.never_parts.value)} %"
                cells["parts after"] = "-" if agreement.parts_after is None else f"{agreement.parts_after:.0f}"
        rows.append(cells)
    titles = max(rows, key=len)
    return [list(titles), *([row.get(title, "-") for title in titles] for row in rows)]


def _difference_cells(difference: Difference) -> dict[str, str]:
    value = difference.estimate.value
    if difference.measure == "accuracy":
        title, text, worse = "right, points", _interval(difference.estimate, "{:+.1f}".format, 100), value < 0
    else:
        title, text, worse = "nats per token", _interval(difference.estimate, "{:+.1e}".format), value > 0
    return {title: text, "verdict": ("worse" if worse else "better") if difference.differs else "no difference shown"}


def _interval(estimate: Estimate, write: Callable[[float], str], scale: float = 1) -> str:
    if estimate.low is None or estimate.high is None:
        return write(scale * estimate.value)
    return f"{write(scale * estimate.value)} [{write(scale * estimate.low)}, {write(scale * estimate.high)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows with aligned columns, the first one aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
