"""`enginewright triton`: writes an engine directory as a model of a Triton model repository."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from enginewright.builders.triton.repository import TritonModel, write_model

_HELP = {
    "instances": "processes that serve the model, each with its own batch and cache",
    "max_queue": "requests of an instance that may wait for a slot",
    "threads": "of each instance (default: the physical cores, shared out)",
    "max_batch": "requests that run at once (default: the engine's limit)",
    "cache_tokens": "of the cache, over all running requests (default: what they can use, or half of the memory holds)",
    "prefill_chunk": "tokens of one step at most (default: 512)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("engine", metavar="DIR", help="engine directory")
    parser.add_argument("--output", required=True, metavar="REPO", help="model repository; others' models in it stay")
    parser.add_argument("--name", metavar="NAME", help="of the model and its folder (default: the engine's)")
    for field in dataclasses.fields(TritonModel):
        if field.name in _HELP:
            default = "" if field.default is None else f" (default: {field.default})"
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(
                flag, type=int, default=field.default, metavar="N", help=f"{_HELP[field.name]}{default}"
            )
    parser.add_argument("--backend", metavar="NAME", help="default: the best of the engine's that the server can run")
    parser.add_argument(
        "--openai", action="store_true", help="shapes and types for Triton's OpenAI frontend and TensorRT-LLM's clients"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model of this name")


def run(arguments: argparse.Namespace) -> int:
    """Write the repository."""
    options = {name: getattr(arguments, name) for name in ("name", "backend", "openai", *_HELP)}
    target = write_model(
        Path(arguments.engine), Path(arguments.output), TritonModel(**options), overwrite=arguments.overwrite
    )
    print(f"{target}: written; serve it with `tritonserver --model-repository={target.parent}`")
    return 0
