"""`enginewright build`: exports a checkpoint and builds a backend's engine, in one call.

A command composes packages, so it may import the builders.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from enginewright import builders
from enginewright.builders import options
from enginewright.exporters.build import build
from enginewright.exporters.methods.registry import find_options
from enginewright.exporters.passes.narrow_activations import DTYPES
from enginewright.exporters.recipe import PLUGINS, Recipe, parse_method, parse_weights, read_recipe
from enginewright.exporters.trial import KINDS, REPORT
from enginewright.exporters.weights.registry import list_forms
from enginewright.runtime.artifact.files.json_file import read_object
from enginewright.runtime.artifact.stored_codes import codes_lines
from enginewright.runtime.errors import ArtifactError

DEFAULTS = Recipe()
FIELDS = [field.name for field in dataclasses.fields(Recipe)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; what the command line does not set, the recipe file or its default does."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="checkpoint: a directory, a .gguf file, or a hub id like owner/name",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="engine directory to write")
    parser.add_argument(
        "--apply",
        action="append",
        metavar="NAME:k=v,...",
        help=f"inference method, repeatable, in order; known: {', '.join(find_options())}",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE.yaml",
        help=f"file with any of {', '.join(FIELDS)}; flags win over it, --apply adds to it",
    )
    parser.add_argument("--backend", default="onnxruntime", help=f"one of {', '.join(builders.BACKENDS)}")
    parser.add_argument(
        "--weights",
        metavar="KIND[:k=v,...]",
        help=f"stored form of the weights (default {DEFAULTS.weights.kind}); the forms, with defaults of their options: {list_forms()}",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help="what the graph computes in; half types are for devices (default float32)",
    )
    parser.add_argument(
        "--plugins",
        choices=PLUGINS,
        help="none: a graph of standard ops, for backends without our plugins (default all)",
    )
    parser.add_argument("--kv-bits", type=int, metavar="16|32", help=f"cached element (default {DEFAULTS.cache_bits})")
    parser.add_argument("--max-batch", type=int, metavar="N", help=f"rows in a step (default {DEFAULTS.max_batch})")
    parser.add_argument("--max-context", type=int, metavar="N", help="tokens of a request (default: the model's)")
    parser.add_argument(
        "--trial",
        choices=KINDS,
        default="logits",
        help="run the engine before it is published: none; step: its first steps; logits: and compare it with the model, "
        "if that fits into half of the free memory (default logits)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="fail where parts of the checkpoint are not used, such as tensors or settings; else they are named",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the engine at --output")
    options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Build the engine; on failure --output is what it was."""
    begin = time.perf_counter()
    recipe = _recipe(arguments)
    manifest = build(
        arguments.model,
        arguments.output,
        recipe,
        arguments.backend,
        options.from_arguments(arguments),
        overwrite=arguments.overwrite,
        trial=arguments.trial,
        strict=arguments.strict,
    )
    for line in codes_lines(manifest.weights):
        tqdm.write(line, file=sys.stderr)
    size = sum(file.size for file in manifest.files())
    told = read_object(arguments.output / REPORT, ArtifactError, "build the engine again")["told"]
    ids = "" if manifest.tokenizer else "; it takes and gives token ids alone, as the checkpoint has no tokenizer"
    tqdm.write(f"{arguments.output}: {size / 1e6:.1f} MB in {time.perf_counter() - begin:.1f} s{ids}; {told}")
    return 0


def _recipe(arguments: argparse.Namespace) -> Recipe:
    fields: dict[str, Any] = read_recipe(arguments.recipe) if arguments.recipe else {}
    for name in ("dtype", "plugins", "kv_bits", "max_batch", "max_context"):
        if getattr(arguments, name) is not None:
            fields[name] = getattr(arguments, name)
    if arguments.weights is not None:
        fields["weights"] = parse_weights(arguments.weights)
    if arguments.apply:
        fields["apply"] = (*fields.get("apply", ()), *(parse_method(spec) for spec in arguments.apply))
    return Recipe(**fields)
