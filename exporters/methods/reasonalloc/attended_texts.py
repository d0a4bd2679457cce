"""The texts that commands of `tune` measure attention on, as their arguments name them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from enginewright.exporters.methods.reasonalloc.written_texts import (
    PROBLEMS,
    TextOptions,
    WrittenText,
    read_continuations,
    write_texts,
)
from enginewright.exporters.methods.tuner import TuningData
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.runtime.errors import ExportError
from enginewright.runtime.machine import physical_cores

TEXTS = TextOptions()


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, its texts, and the threads."""
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
    add("--prompts", type=int, default=TEXTS.prompts, metavar="N", help="prompts at most (8)")
    add(
        "--length",
        type=int,
        default=TEXTS.length,
        metavar="N",
        help="tokens of a prompt and its continuation at most (2048, or the model's context)",
    )
    add("--seed", type=int, default=TEXTS.seed, metavar="N", help="of the problems, and of tokens that are drawn (0)")
    add("--threads", type=int, metavar="N", help="default: the physical cores")


@dataclass(frozen=True, kw_only=True)
class AttendedTexts:
    """The texts that a command's arguments name; `of_arguments` creates it.

    model: the checkpoint, as `--model` names it.
    data: a file of prompts, or PROBLEMS; None with continuations.
    continuations: a file of texts that the model has written.
    options: how many texts, and how long.
    threads: that the command may use.
    """

    model: str
    data: str | None
    continuations: Path | None
    options: TextOptions
    threads: int

    @classmethod
    def of_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return the source; ExportError for a number that is out of range."""
        options = TextOptions(prompts=arguments.prompts, length=arguments.length, seed=arguments.seed)
        if arguments.threads is not None and arguments.threads < 1:
            raise ExportError(f"--threads: got {arguments.threads}, expected 1 or more")
        return cls(
            model=arguments.model,
            data=arguments.data,
            continuations=arguments.continuations,
            options=options,
            threads=arguments.threads or physical_cores(),
        )

    @property
    def name(self) -> str:
        """The name of the file without its folder, or of the problems."""
        return Path(self.continuations or self.data or "").name

    def read(self, checkpoint: Checkpoint, data: TuningData) -> list[WrittenText]:
        """Return the texts, which the model writes where they are prompts; the errors are those of `written_texts`."""
        if self.continuations is not None:
            return read_continuations(checkpoint, self.continuations, data, self.options)
        return write_texts(checkpoint, self.model, self.data or "", data, self.options)
