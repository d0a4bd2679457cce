"""The command `enginewright tune reasonalloc`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from enginewright.exporters.methods.measured_file import SourceModel, check_output
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.reasonalloc.attended_texts import AttendedTexts, add_text_arguments
from enginewright.exporters.methods.reasonalloc.curve import DemandCurve
from enginewright.exporters.methods.reasonalloc.measure_demand import (
    DemandOptions,
    layer_demand,
    measure_demand,
    open_model,
)
from enginewright.exporters.methods.tuner import Tuner, TuningData
from enginewright.exporters.source.checkpoint import open_checkpoint

DEMAND = DemandOptions()


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_text_arguments(parser)
    add("--output", required=True, type=Path, metavar="FILE", help="the curve to write, as JSON")
    add("--rho", type=float, default=DEMAND.rho, metavar="X", help="share of attention (0.93)")
    add("--positions", type=int, default=DEMAND.positions, metavar="N", help="queries of a text at most (64)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--heads-first", action="store_true", help="average the heads' weights, then count; else count, then average"
    )
    how.add_argument("--max-head", action="store_true", help="a layer's demand is that of its head that needs most")
    add("--json", action="store_true", help="print the curve as JSON instead of a table")


def _run(arguments: argparse.Namespace, data: TuningData) -> int:
    """Measure the demand, write the curve, and print it."""
    source = AttendedTexts.of_arguments(arguments)
    options = DemandOptions(
        rho=arguments.rho,
        positions=arguments.positions,
        aggregate="heads_first" if arguments.heads_first else "max_head" if arguments.max_head else "mean",
    )
    check_output(arguments.output, "curve.json")
    torch.set_num_threads(source.threads)
    checkpoint = open_checkpoint(arguments.model)
    model = open_model(checkpoint)
    texts = source.read(checkpoint, data)
    heads = measure_demand(model, texts, options)
    curve = DemandCurve(
        model=SourceModel(name=checkpoint.name, sha256=hash_of(checkpoint)),
        rho=options.rho,
        demand=layer_demand(heads, options.aggregate),
        aggregate=options.aggregate,
        heads=heads,
        data=source.name,
        texts=len(texts),
        tokens=sum(len(text.ids) for text in texts),
        positions=sum(len(text.positions(options.positions)) for text in texts),
    )
    curve.write(arguments.output)
    print(json.dumps(dataclasses.asdict(curve), indent=2) if arguments.json else _table(curve))
    return 0


def _table(curve: DemandCurve) -> str:
    lines = [
        f"{curve.texts} texts of {curve.tokens} tokens, {curve.positions} queries; tokens for {curve.rho:g} of the attention:"
    ]
    for layer, demand in enumerate(curve.demand):
        heads = curve.heads[layer]
        if demand is None or heads is None:
            lines.append(f"layer {layer}: has a window, takes no part")
        else:
            lines.append(f"layer {layer}: {demand:.1f} (heads {min(heads):.1f} to {max(heads):.1f})")
    return "\n".join(lines)


TUNER = Tuner(
    name="reasonalloc",
    summary="Measure how many tokens each layer of a model attends to, by which a budget of the cache is shared out.",
    add_arguments=_add_arguments,
    run=_run,
)
