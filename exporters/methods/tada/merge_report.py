"""The account of a merge: report.json, and a picture of the gates over depth."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginewright.exporters.methods.tada.layer_gates import log_ratios, spearman
from enginewright.runtime.errors import ExportError

REPORT, PICTURE = "report.json", "gates.png"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A component that a conflict removed; `merge_layer` creates it.

    number: from the strongest, which is 0.
    strength: its singular value, without the gate.
    cosine: the lowest c of its pairs.
    """

    number: int
    strength: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class MergedLayer:
    """The account of one layer; `merge_layer` creates it.

    module: its name in the model.
    layer, projection: the number of its block, and its name there.
    adapters: which of the two change it: both, task or domain.
    rho_task, rho_domain: the probes; None where there was none.
    gate: the domain's share; None for the other schemes.
    cosines: the lowest and the highest c of all pairs of components; None where there are no pairs.
    dropped_task, dropped_domain: what conflicts removed.
    norm: the Frobenius norm of the merged change.
    tail: that of what is lost because of the rank.
    """

    module: str
    layer: int | None
    projection: str
    adapters: str
    rho_task: float | None = None
    rho_domain: float | None = None
    gate: float | None = None
    cosines: tuple[float, float] | None = None
    dropped_task: tuple[Dropped, ...] = ()
    dropped_domain: tuple[Dropped, ...] = ()
    norm: float
    tail: float


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """The account of a merge; `merge_adapters` creates it.

    method: "TaDA-R" for the scheme tada, else the scheme: TaDA-R is a reconstruction, and no result of the paper's code.
    base: the model's name.
    task, domain: the folders of the adapters.
    options: the scheme and all that it uses.
    rank: of the merged adapter.
    texts, tokens: of the probe; 0 without one.
    depth: of each projection, Spearman's correlation of the layer's number with ln of the domain's probe over the task's. The
        gates have a reason only where it is positive.
    layers: in the order of the blocks.
    """

    method: str
    base: str
    task: str
    domain: str
    options: Mapping[str, float | str]
    rank: int
    texts: int
    tokens: int
    depth: Mapping[str, float | None]
    layers: Sequence[MergedLayer]

    def write(self, root: Path) -> None:
        """Write report.json into the folder `root`, completely or not at all."""
        partial = root / f".{REPORT}.partial"
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        partial.replace(root / REPORT)

    def table(self) -> str:
        """The report as lines of text: of each projection its probes over depth, its gates and what was dropped."""
        lines = []
        for projection in dict.fromkeys(each.projection for each in self.layers):
            own = [each for each in self.layers if each.projection == projection]
            dropped = sum(len(each.dropped_task) + len(each.dropped_domain) for each in own)
            parts = [f"{projection}: {len(own)} layers"]
            if gates := [each.gate for each in own if each.gate is not None]:
                parts.append(f"gates {min(gates):.3f} to {max(gates):.3f}")
                parts.append(f"{dropped} components dropped")
            if (trend := self.depth.get(projection)) is not None:
                parts.append(f"rank correlation of depth with the domain's share {trend:+.2f}")
            lines.append(", ".join(parts))
        return "\n".join(lines)


def depth_trends(layers: Sequence[MergedLayer]) -> dict[str, float | None]:
    """Spearman's correlation of depth with the logarithm of the probes' ratio, by projection; None where it has none."""
    trends = {}
    for projection in dict.fromkeys(each.projection for each in layers):
        own = [each for each in layers if each.projection == projection and each.rho_task is not None]
        probes = [(each.rho_task or 0.0, each.rho_domain or 0.0) for each in own]
        if probes:
            trends[projection] = spearman(log_ratios(*zip(*probes, strict=True)))
    return trends


def check_picture() -> None:
    """Raise ExportError where matplotlib is not installed, which draws the picture."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ExportError(
            f"{PICTURE}: got no Python package 'matplotlib', which draws it; pip install 'enginewright[tune]', or pass "
            "--no-picture"
        )


def draw_gates(report: MergeReport, root: Path) -> None:
    """Write the picture gates.png into the folder `root`: the gates of each projection over depth, and the probes' ratio."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    left, right = figure.subplots(1, 2)
    shared = [each for each in report.layers if each.adapters == "both" and each.layer is not None]
    for projection in dict.fromkeys(each.projection for each in shared):
        own = [each for each in shared if each.projection == projection]
        label = projection.rpartition(".")[2]
        places = [each.layer or 0 for each in own]
        left.plot(places, [each.gate or 0.0 for each in own], marker="o", markersize=3, label=label)
        if all(each.rho_task is not None for each in own):
            ratios = log_ratios([each.rho_task or 0.0 for each in own], [each.rho_domain or 0.0 for each in own])
            right.plot(places, ratios, marker="o", markersize=3, label=label)
    left.set_ylim(0, 1)
    left.set_ylabel("gate: the domain's share")
    right.set_ylabel("ln of the domain's probe over the task's")
    for axes in (left, right):
        axes.set_xlabel("layer")
    if left.lines:
        left.legend(fontsize=8)
    figure.suptitle(f"{report.method}: {Path(report.task).name} and {Path(report.domain).name}", fontsize=10)
    partial = root / f".{PICTURE}.partial"
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(root / PICTURE)
