"""The tuner of control vectors: `enginewright tune control-vector` makes a folder of vectors of llama.cpp's file."""

from __future__ import annotations

import argparse
from pathlib import Path

from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.steering.control_vectors import read_directions
from enginewright.exporters.methods.steering.vector_folder import check_output, write_vectors
from enginewright.exporters.methods.tuner import Tuner, TuningData
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.errors import ExportError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file", required=True, type=Path, metavar="FILE", help="control vectors of llama.cpp, a GGUF file"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of vectors to write")
    parser.add_argument("--name", metavar="TEXT", help="what requests call the vectors (the file's name)")
    parser.add_argument(
        "--model",
        metavar="DIR_OR_HUB_ID",
        help="the model that they were made on, so that engines of others refuse them",
    )


def _run(arguments: argparse.Namespace, data: TuningData) -> int:
    """Write the folder, and tell how to use it."""
    check_output(arguments.output)
    directions, hint = read_directions(arguments.file)
    model = {"name": hint, "sha256": ""}
    if arguments.model is not None:
        checkpoint = open_checkpoint(arguments.model)
        size, count = int(checkpoint.config.hidden_size), int(checkpoint.config.num_hidden_layers)
        got = len(next(iter(directions.values()))), max(directions)
        if got[0] != size or got[1] >= count:
            raise ExportError(
                f"{arguments.file}: got vectors of {got[0]} numbers for layers up to {got[1]}, expected {size} numbers and layers "
                f"below {count} as {checkpoint.name} has"
            )
        model = {"name": checkpoint.name, "sha256": hash_of(checkpoint)}
    write_vectors(
        arguments.output,
        {f"direction.{layer}": vector for layer, vector in directions.items()},
        task=arguments.name or arguments.file.stem,
        model=model,
        layer=None,
        more={"variant": "control-vector"},
    )
    print(f"{len(directions)} vectors; load them into an engine that was built with --apply steering:at=stream")
    return 0


TUNERS = (
    Tuner(
        name="control-vector",
        summary="Turn control vectors of llama.cpp into a folder of vectors for the method steering.",
        add_arguments=_add_arguments,
        run=_run,
    ),
)
