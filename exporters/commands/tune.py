"""`enginewright tune`: trains or converts what a method needs, such as extra heads, on a frozen checkpoint.

Each method brings its own tuners. A command composes packages, so this one hands them the runtime's readers of data, and
engines to write text with.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from enginewright.exporters.build import build
from enginewright.exporters.methods.registry import find_tuners
from enginewright.exporters.methods.tuner import TuningProblem, TuningText
from enginewright.exporters.recipe import Recipe
from enginewright.runtime import Sampling, load
from enginewright.runtime.evaluation.documents import read_documents
from enginewright.runtime.evaluation.problems import training_problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: a subcommand for each tuner that a method has."""
    tuners = find_tuners()
    subcommands = parser.add_subparsers(dest="tuner", required=True, metavar="NAME", help=f"one of {', '.join(tuners)}")
    for name, tuner in tuners.items():
        tuner.add_arguments(subcommands.add_parser(name, description=tuner.summary))


def run(arguments: argparse.Namespace) -> int:
    """Run the tuner that was named."""
    return find_tuners()[arguments.tuner].run(arguments, RuntimeData())


class RuntimeData:
    """The data of tuners, read or written by the runtime; `run` creates it."""

    def read_texts(self, path: Path) -> Sequence[TuningText]:
        """Return the texts of a file; RequestError for one that cannot be read."""
        return read_documents(path)

    def make_problems(self, name: str) -> Iterator[TuningProblem]:
        """Yield the generated problems of a name without end."""
        return training_problems(name)

    def continue_prompts(
        self, model: str, prompts: Sequence[Sequence[int]], length: int, seed: int
    ) -> list[tuple[int, ...]]:
        """Return what the model writes after each prompt, by an engine that is gone afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "engine"
            build(model, root, Recipe(max_batch=len(prompts), max_context=length), "onnxruntime", trial="none")
            samplings = [Sampling(max_tokens=length - len(prompt), seed=seed) for prompt in prompts]
            with load(root) as llm:
                return [each.token_ids for each in llm.generate([list(prompt) for prompt in prompts], samplings)]
