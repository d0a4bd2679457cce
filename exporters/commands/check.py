"""`enginewright check`: compares an engine with its PyTorch model, and writes the report into the engine directory."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from enginewright.builders.layer_check.compare import compare_layers
from enginewright.runtime.artifact import directory
from enginewright.runtime.errors import RequestError
from enginewright.runtime.loader import load

if TYPE_CHECKING:  # --layers needs neither torch nor the checkpoint
    from enginewright.exporters.parity import Parity
    from enginewright.exporters.source.checkpoint import Checkpoint
    from enginewright.runtime.artifact.manifest import Manifest

REPORT = Path("reports/parity.json")
LAYERS_REPORT = Path("reports/layers.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("engine", type=Path, metavar="DIR", help="engine directory")
    parser.add_argument(
        "--model", metavar="MODEL", help="the checkpoint it was built from: a directory, a .gguf file or a hub id"
    )
    parser.add_argument(
        "--layers", action="store_true", help="compare the graph with TensorRT's, layer by layer, instead of the model"
    )
    parser.add_argument(
        "--layer-tolerance", type=float, default=0.02, metavar="X", help="mean error over mean magnitude (0.02)"
    )
    parser.add_argument("--new-tokens", type=int, default=200, metavar="N", help="greedy tokens per prompt (200)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    parser.add_argument(
        "--backend", metavar="NAME", help="engine of the directory to run (default: the first that can)"
    )
    parser.add_argument("--json", action="store_true", help="print the report instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Compare, write the report, and return 1 beyond tolerance."""
    if arguments.layers:
        return _run_layers(arguments)
    if arguments.model is None:
        raise RequestError(
            "check: got neither --model nor --layers, expected the checkpoint that the engine was built from"
        )
    from enginewright.exporters.methods import registry
    from enginewright.exporters.methods.tolerance import tolerance_of_numbers
    from enginewright.exporters.parity import compare, failures_of
    from enginewright.exporters.source.checkpoint import open_checkpoint
    from enginewright.exporters.source.reference import load_reference

    with load(arguments.engine, arguments.threads, backend=arguments.backend) as llm:
        checkpoint = open_checkpoint(arguments.model)
        check_source(llm.manifest, checkpoint)
        applied = registry.applied_methods(llm.manifest)
        tolerance = registry.tolerance(applied, tolerance_of_numbers(llm.manifest))
        reference = load_reference(checkpoint, applied, max_context=llm.manifest.limits.max_context)
        parity = compare(llm, reference, new_tokens=arguments.new_tokens)
    failures = failures_of(parity, tolerance)
    report = {**dataclasses.asdict(parity), "tolerance": dataclasses.asdict(tolerance), "failures": failures}
    path = arguments.engine / REPORT
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report) if arguments.json else _table(parity, failures))
    return 1 if failures else 0


def check_source(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raise RequestError where the checkpoint cannot be the one that an engine was built from."""
    config = checkpoint.config
    for what, ours, theirs in (
        ("family", manifest.model.family, config.model_type),
        ("vocabulary", manifest.model.vocab_size, config.vocab_size),
        ("hidden size", manifest.model.hidden_size, config.hidden_size),
    ):
        if ours != theirs:
            raise RequestError(
                f"{checkpoint.path}: got a model of {what} {theirs}, expected {ours} as the engine has; pass the checkpoint "
                f"that it was built from, {manifest.name}"
            )


def _run_layers(arguments: argparse.Namespace) -> int:
    """Compare layer by layer, and write reports/layers.json."""
    report = compare_layers(arguments.engine, directory.load(arguments.engine))
    first = report.first_beyond(arguments.layer_tolerance)
    found = {**dataclasses.asdict(report), "tolerance": arguments.layer_tolerance, "first": first and first.layer}
    path = arguments.engine / LAYERS_REPORT
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found) if arguments.json else report.table(arguments.layer_tolerance))
    return 0 if first is None else 1


def _table(parity: Parity, failures: list[str]) -> str:
    greedy = ", ".join(
        f"{g.matched}/{g.wanted}" + ("" if g.margin is None else f" (margin {g.margin:.1e})") for g in parity.greedy
    )
    lines = [
        f"tokens compared  {parity.tokens}",
        f"max |error|      {parity.max_error:.2e}   (largest logit {parity.logit_range:.2f})",
        f"mean KL          {parity.mean_kl:.2e} nats per token",
        f"top-1 agreement  {100 * parity.top1_agreement:.2f} %",
        f"greedy tokens    {greedy}",
        *(f"FAILED           {failure}" for failure in failures),
    ]
    return "\n".join(lines if failures else [*lines, "passed"])
