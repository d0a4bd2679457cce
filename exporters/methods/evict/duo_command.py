"""The command `enginewright tune duo`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from enginewright.exporters.methods.evict.head_gates import HeadGates
from enginewright.exporters.methods.evict.mean_heads import estimate_gates
from enginewright.exporters.methods.measured_file import SourceModel, check_output
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.reasonalloc.attended_texts import AttendedTexts, add_text_arguments
from enginewright.exporters.methods.reasonalloc.measure_demand import open_model
from enginewright.exporters.methods.tuner import Tuner, TuningData
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.errors import ExportError

REPEATS = 500


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_text_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the gates to write, as JSON")
    parser.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        help=f"how often mean queries and keys are repeated ({REPEATS}, or the model's context)",
    )
    parser.add_argument("--json", action="store_true", help="print the gates as JSON instead of a table")


def _run(arguments: argparse.Namespace, data: TuningData) -> int:
    """Estimate the gates, write the file, and print it."""
    source = AttendedTexts.of_arguments(arguments)
    if arguments.repeats is not None and arguments.repeats < 2:
        raise ExportError(f"--repeats: got {arguments.repeats}, expected 2 or more")
    check_output(arguments.output, "heads.json")
    torch.set_num_threads(source.threads)
    checkpoint = open_checkpoint(arguments.model)
    model = open_model(checkpoint)
    longest = checkpoint.longest_context
    repeats = arguments.repeats or min(REPEATS, longest or REPEATS)
    if longest and repeats > longest:
        raise ExportError(f"--repeats: got {repeats}, expected at most {longest}, the model's context")
    texts = source.read(checkpoint, data)
    found = HeadGates(
        model=SourceModel(name=checkpoint.name, sha256=hash_of(checkpoint)),
        gates=estimate_gates(model, texts, repeats),
        repeats=repeats,
        data=source.name,
        texts=len(texts),
        tokens=sum(len(text.ids) for text in texts),
    )
    found.write(arguments.output)
    print(json.dumps(dataclasses.asdict(found), indent=2) if arguments.json else _table(found))
    return 0


def _table(found: HeadGates) -> str:
    lines = [
        f"{found.texts} texts of {found.tokens} tokens, means repeated {found.repeats} times; gates of each layer's KV heads:"
    ]
    for layer, gates in enumerate(found.gates):
        shown = "has a window, takes no part" if gates is None else " ".join(f"{gate:.3f}" for gate in gates)
        lines.append(f"layer {layer}: {shown}")
    return "\n".join(lines)


TUNER = Tuner(
    name="duo",
    summary="Estimate how much each KV head of a model needs of what lies far back, by which heads keep every token or few.",
    add_arguments=_add_arguments,
    run=_run,
)
