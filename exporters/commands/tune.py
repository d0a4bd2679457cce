"""`enginewright tune`: trains or converts what a method needs, such as extra heads, on a frozen checkpoint.

Each method brings its own tuners. A command composes packages, so this one hands them the runtime's readers of data.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from enginewright.exporters.methods.registry import find_tuners
from enginewright.exporters.methods.tuner import TuningProblem, TuningText
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
    """The data of tuners, read by the runtime; `run` creates it."""

    def read_texts(self, path: Path) -> Sequence[TuningText]:
        """Return the texts of a file; RequestError for one that cannot be read."""
        return read_documents(path)

    def make_problems(self, name: str) -> Iterator[TuningProblem]:
        """Yield the generated problems of a name without end."""
        return training_problems(name)
