"""`enginewright export-checkpoint`: writes a checkpoint with methods applied, for vLLM, SGLang, transformers or TensorRT-LLM."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tqdm import tqdm

from enginewright.exporters.checkpoint_export.writer import (
    FORMATS,
    check_methods,
    export_checkpoint,
    open_source,
)
from enginewright.exporters.methods.registry import Applied, find_options
from enginewright.exporters.recipe import parse_method, read_recipe
from enginewright.exporters.source.quantized.exported_bits import RECORD
from enginewright.runtime.artifact import directory
from enginewright.runtime.errors import ExportError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="checkpoint: a directory, a .gguf file, or a hub id like owner/name",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="checkpoint directory to write")
    parser.add_argument(
        "--apply",
        action="append",
        default=[],
        metavar="NAME:k=v,...",
        help=f"method that changes weights, repeatable, in order; known: {', '.join(find_options())}",
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml", help="methods from a file, before those of --apply")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="compressed-tensors",
        help="of quantised weights: compressed-tensors for transformers, vLLM and SGLang; modelopt for TensorRT-LLM",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the exported checkpoint at --output")


def run(arguments: argparse.Namespace) -> int:
    """Write the checkpoint; on failure --output is what it was."""
    begin = time.perf_counter()
    output, applied = arguments.output, _methods(arguments)
    check_methods(applied)
    directory.check_output(output, overwrite=arguments.overwrite, mark=RECORD)
    checkpoint = open_source(arguments.model, output)
    try:
        with directory.staged(output, overwrite=arguments.overwrite, mark=RECORD) as root:
            size = export_checkpoint(checkpoint, root, applied, arguments.format)
    except OSError as e:
        raise ExportError(f"{output}: cannot be written ({e.strerror or e}); nothing was changed") from e
    tqdm.write(f"{output}: {size / 1e6:.1f} MB in {time.perf_counter() - begin:.1f} s")
    return 0


def _methods(arguments: argparse.Namespace) -> tuple[Applied, ...]:
    fields = read_recipe(arguments.recipe) if arguments.recipe else {}
    if other := [name for name in fields if name != "apply"]:
        raise ExportError(
            f"{arguments.recipe}: got {other[0]!r}, which engines have; expected apply alone for a checkpoint"
        )
    return (*fields.get("apply", ()), *(parse_method(spec) for spec in arguments.apply))
