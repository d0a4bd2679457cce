"""The report of an unlearning: the subspaces, how far each layer's output changed, and the curves of the losses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from enginewright.exporters.calibration.atomic_files import replace_file
from enginewright.exporters.methods.nsru.adapted_model import AdaptedModel
from enginewright.exporters.methods.nsru.retained_inputs import ObservedInputs, SharedInput, reader_of
from enginewright.exporters.methods.nsru.subspace import project
from enginewright.exporters.methods.nsru.unlearn_steps import Curves
from enginewright.runtime.errors import ExportError

REPORT, PICTURE = "report.json", "report.png"
LARGEST_LEAK = 1e-5


def require_plotting() -> None:
    """Raise ExportError where the package that draws the report is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ExportError("tune nsru: needs the package matplotlib; pip install 'enginewright[tune]'")


def describe_modules(model: AdaptedModel, inputs: ObservedInputs) -> list[dict[str, Any]]:
    """Return, for each layer with an adapter, the numbers of its subspace and of its change.

    name: in the model.
    k, samples, mean_share: the subspace's dimension, the retained samples, and the share of their energy in their mean.
    residual_retain, residual_forget: the share of either file's energy outside of the subspace.
    update: the Frobenius norm of the weight's change.
    leak: that of the change of inputs in the subspace, over the change's own.
    change_retain, change_forget: the norm of the output's change on either file's samples, over that of the output.
    """
    names = list(model.projections)
    found = []
    for name, adapter in model.adapters.items():
        own, change = inputs.inputs[reader_of(name, names)], adapter.update()
        weight = model.projections[name].weight
        norm = float(change.norm())
        found.append(
            {
                "name": name,
                "k": own.basis.shape[1],
                "samples": own.count,
                "mean_share": own.mean_share,
                "residual_retain": _residual(own.retained, own),
                "residual_forget": _residual(own.forgotten, own),
                "update": norm,
                "leak": float((change @ own.basis.double()).norm()) / norm if norm else 0.0,
                "change_retain": _ratio(own.retained, change, weight),
                "change_forget": _ratio(own.forgotten, change, weight),
            }
        )
    return found


def check_projection(model: AdaptedModel) -> None:
    """Assert that no adapter changes the output of an input in its subspace."""
    for name, adapter in model.adapters.items():
        leak = float((adapter.update() @ adapter.basis.double()).norm())
        whole = adapter.scaling * float(adapter.a.double().norm()) * float(adapter.b.detach().double().norm())
        assert leak <= LARGEST_LEAK * whole, f"{name}: the change reaches into the subspace: {leak} of {whole}"


def write_report(root: Path, report: dict[str, Any]) -> None:
    """Write report.json and its picture."""
    replace_file(root / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    partial = root / f".{PICTURE}.partial"
    _draw(partial, report["modules"], report["curves"])
    partial.replace(root / PICTURE)


def _residual(rows: torch.Tensor, own: SharedInput) -> float:
    whole = float(rows.double().square().sum())
    return float(project(rows.double(), own.basis.double()).square().sum()) / whole if whole else 0.0


def _ratio(rows: torch.Tensor, change: torch.Tensor, weight: torch.Tensor) -> float:
    whole = float((rows.double() @ weight.double().T).norm())
    return float((rows.double() @ change.T).norm()) / whole if whole else 0.0


def _draw(path: Path, modules: list[dict[str, Any]], curves: Curves) -> None:
    """Draw the losses by step, and the shares of energy outside of the subspace by layer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # of the extra `tune`
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, shares = figure.subplots(1, 2)
    for kind in ("safe", "undesired", "retain"):
        if kind in curves:
            losses.plot(range(1, len(curves[kind]) + 1), curves[kind], label=f"{kind} answers")
    losses.set(xlabel="step", ylabel="nats a token", title="Losses")
    losses.legend()
    for last, mark in (("q_proj", "o"), ("o_proj", "^")):
        chosen = [each for each in modules if each["name"].endswith(last)]
        for part, colour in (("retain", "tab:green"), ("forget", "tab:red")):
            values = [each[f"residual_{part}"] for each in chosen]
            shares.plot(range(len(chosen)), values, mark, color=colour, label=f"{part}, {last}", linestyle="none")
    shares.set(xlabel="adapted block", ylabel="share of energy", ylim=(0, 1), title="Outside of the retained subspace")
    shares.legend()
    figure.savefig(path, format="png", dpi=110, metadata={"Software": ""})
