"""The interface of a tuner: a command of `enginewright tune` that trains or converts what a method needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class TuningText(Protocol):
    """A text, and the prompt before it, which is empty where there is none."""

    @property
    def prompt(self) -> str: ...

    @property
    def text(self) -> str: ...


class TuningProblem(Protocol):
    """A generated problem: a question and its worked solution. level: "standard" or "hard"."""

    @property
    def question(self) -> str: ...

    @property
    def solution(self) -> str: ...

    @property
    def level(self) -> str: ...


class TuningData(Protocol):
    """The parts of the runtime that the command hands to a tuner, because methods do not import it."""

    def read_texts(self, path: Path) -> Sequence[TuningText]:
        """Return the texts of a text file or a .jsonl of texts; RequestError for a file that cannot be read."""
        ...

    def make_problems(self, name: str) -> Iterator[TuningProblem]:
        """Yield generated problems without end; the same name gives the same ones."""
        ...

    def continue_prompts(
        self, model: str, prompts: Sequence[Sequence[int]], length: int, seed: int
    ) -> Sequence[Sequence[int]]:
        """Return the token ids that the model writes after each prompt, at most up to `length` tokens with the prompt.

        It runs as an engine, which is built in a temporary folder, with the model's own generation settings. The errors are
        those of a build.

        model: a checkpoint, as `--model` names it.
        prompts: token ids, each shorter than `length`.
        seed: of the tokens that are drawn.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """One command `enginewright tune NAME`; a method lists its own in `Method.tuners`.

    name: of the command.
    summary: one sentence that `--help` shows.
    add_arguments: declares the command's arguments.
    run: does the work and returns the exit code.
    """

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, TuningData], int]
