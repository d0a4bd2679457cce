"""Draws the engines of a report: quality against the bytes read for a token, and against speed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from enginewright.runtime.errors import RequestError, UnsupportedError
from enginewright.runtime.evaluation.report.engine_report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def check(path: Path) -> None:
    """Raise unless `draw` can write to `path`, so that no evaluation runs in vain.

    Raises:
        UnsupportedError: matplotlib is not installed.
        RequestError: the suffix is not .png.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError(
            "--plot: got no Python package 'matplotlib', which draws it; pip install 'enginewright[eval]'"
        )
    if path.suffix != ".png":
        raise RequestError(f"--plot {path}: got the suffix {path.suffix!r}, expected .png")


def draw(report: Report, path: Path) -> None:
    """Write the picture to `path`; the bars in it are the intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    left, right = figure.subplots(1, 2, sharey=True)
    _scatter(left, report, [engine.bytes_per_token / 1e6 for engine in report.engines])
    _scatter(right, report, [engine.timing.tokens_per_second for engine in report.engines])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(report.engines), 6))
    asked = report.engines[0].accuracy is not None
    left.set_ylabel("right answers, %" if asked else "perplexity (lower is better)")
    left.set_xlabel("MB read per token")
    right.set_xlabel(f"tokens {'generated' if asked else 'read'} per second")
    drawn = ", ".join(f"{count} {kind}" for kind, count in report.drawn.items())
    source = f"{report.level} problems" if report.data is None else Path(report.data).name
    figure.suptitle(
        f"{report.suite}, {source}: {drawn}; bars are {100 * report.confidence:.0f} % intervals", fontsize=10
    )
    figure.savefig(path, format="png", dpi=120)


def _scatter(axes: Axes, report: Report, positions: list[float]) -> None:
    scale = 100 if report.engines[0].accuracy is not None else 1
    for engine, x in zip(report.engines, positions, strict=True):
        quality = engine.quality
        low = quality.value if quality.low is None else quality.low
        high = quality.value if quality.high is None else quality.high
        reach = [[scale * max(quality.value - low, 0.0)], [scale * max(high - quality.value, 0.0)]]
        marker = "s" if engine.name == report.reference else "o"
        axes.errorbar([x], [scale * quality.value], yerr=reach, fmt=marker, capsize=4, label=engine.name)
    axes.set_xlim(left=0, right=1.2 * max(positions))
    axes.grid(visible=True, alpha=0.3)
