"""The command `enginewright tune reasonalloc`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.reasonalloc.curve import CurveModel, DemandCurve
from enginewright.exporters.methods.reasonalloc.measure_demand import (
    DemandOptions,
    layer_demand,
    measure_demand,
    open_model,
)
from enginewright.exporters.methods.reasonalloc.written_texts import (
    PROBLEMS,
    TextOptions,
    read_continuations,
    write_texts,
)
from enginewright.exporters.methods.tuner import Tuner, TuningData
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.errors import ExportError
from enginewright.runtime.machine import physical_cores

TEXTS, DEMAND = TextOptions(), DemandOptions()


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_HUB_ID", help="the model, which stays as it is")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        metavar="FILE",
        help=f"prompts, which the model continues: a .jsonl of texts, a text, or `{PROBLEMS}` for generated hard problems",
    )
    source.add_argument(
        "--continuations",
        type=Path,
        metavar="FILE",
        help='texts that the model has written before, such as a .jsonl of {"prompt", "completion"}; no engine is built',
    )
    add("--output", required=True, type=Path, metavar="FILE", help="the curve to write, as JSON")
    add("--rho", type=float, default=DEMAND.rho, metavar="X", help="share of attention (0.93)")
    add("--prompts", type=int, default=TEXTS.prompts, metavar="N", help="prompts at most (8)")
    add("--positions", type=int, default=DEMAND.positions, metavar="N", help="queries of a text at most (64)")
    add(
        "--length",
        type=int,
        default=TEXTS.length,
        metavar="N",
        help="tokens of a prompt and its continuation at most (2048, or the model's context)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--heads-first", action="store_true", help="average the heads' weights, then count; else count, then average"
    )
    how.add_argument("--max-head", action="store_true", help="a layer's demand is that of its head that needs most")
    add("--seed", type=int, default=TEXTS.seed, metavar="N", help="of the problems, and of tokens that are drawn (0)")
    add("--threads", type=int, metavar="N", help="default: the physical cores")
    add("--json", action="store_true", help="print the curve as JSON instead of a table")


def _run(arguments: argparse.Namespace, data: TuningData) -> int:
    """Measure the demand, write the curve, and print it."""
    texts_wanted = TextOptions(prompts=arguments.prompts, length=arguments.length, seed=arguments.seed)
    options = DemandOptions(
        rho=arguments.rho,
        positions=arguments.positions,
        aggregate="heads_first" if arguments.heads_first else "max_head" if arguments.max_head else "mean",
    )
    if arguments.threads is not None and arguments.threads < 1:
        raise ExportError(f"--threads: got {arguments.threads}, expected 1 or more")
    _check_output(arguments.output)
    torch.set_num_threads(arguments.threads or physical_cores())
    checkpoint = open_checkpoint(arguments.model)
    model = open_model(checkpoint)
    if arguments.continuations:
        texts = read_continuations(checkpoint, arguments.continuations, data, texts_wanted)
    else:
        texts = write_texts(checkpoint, arguments.model, arguments.data, data, texts_wanted)
    heads = measure_demand(model, texts, options)
    curve = DemandCurve(
        model=CurveModel(name=checkpoint.name, sha256=hash_of(checkpoint)),
        rho=options.rho,
        demand=layer_demand(heads, options.aggregate),
        aggregate=options.aggregate,
        heads=heads,
        data=Path(arguments.continuations or arguments.data).name,
        texts=len(texts),
        tokens=sum(len(text.ids) for text in texts),
        positions=sum(len(text.positions(options.positions)) for text in texts),
    )
    curve.write(arguments.output)
    print(json.dumps(dataclasses.asdict(curve), indent=2) if arguments.json else _table(curve))
    return 0


def _check_output(path: Path) -> None:
    """Raise ExportError where the curve could not be written."""
    if path.is_dir():
        raise ExportError(f"--output {path}: got a folder, expected a file, such as {path / 'curve.json'}")
    if not path.parent.is_dir():
        raise ExportError(f"--output {path}: got no folder {path.parent}, expected one; make it")


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
