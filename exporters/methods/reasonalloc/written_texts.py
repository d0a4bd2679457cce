"""Texts to measure a demand on: prompts with what the model itself has written after them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from enginewright.exporters.methods.tuner import TuningData
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.tokenizer.engine_tokenizer import need_tokenizer
from enginewright.runtime.errors import ExportError

PROBLEMS = "reasoning"
HARD = "hard"
SKIPPED = 256  # tokens at a text's beginning, where there is little to choose from
LEAST = 16  # positions of a text


@dataclass(frozen=True, kw_only=True)
class WrittenText:
    """A prompt and its continuation; this module creates it.

    ids: token ids of both.
    given: the number of the prompt's.
    """

    ids: tuple[int, ...]
    given: int

    @property
    def first(self) -> int:
        """The first position that counts: in the continuation, and past 256 tokens or a third of a shorter text."""
        return max(self.given, min(SKIPPED, len(self.ids) // 3))

    def positions(self, most: int) -> torch.Tensor:
        """Return at most `most` evenly spaced positions that count, ascending, int64."""
        span = len(self.ids) - 1 - self.first
        count = min(most, span + 1)
        return self.first + torch.arange(count) * span // max(count - 1, 1)


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """The prompts and their continuations; the command creates it.

    prompts: how many at most.
    length: tokens of a prompt and its continuation at most; prompts are cut to half of it.
    seed: of the choice of problems, and of the tokens that are drawn.
    """

    prompts: int = 8
    length: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise ExportError(f"--prompts: got {self.prompts}, expected 1 or more")
        if self.length < 2 * LEAST:
            raise ExportError(f"--length: got {self.length}, expected {2 * LEAST} or more")


def write_texts(
    checkpoint: Checkpoint, model: str, source: str, data: TuningData, options: TextOptions
) -> list[WrittenText]:
    """Return prompts that the model has continued.

    model: the checkpoint, as `--model` names it.
    source: a file of prompts, or PROBLEMS for generated problems. Of a document without a prompt its text is the prompt.

    Raises:
        ExportError: there is no prompt, no tokenizer, or no continuation that is long enough.
        RequestError: the file cannot be read.
    """
    length = _length(checkpoint, options)
    tokenizer = need_tokenizer(checkpoint)
    if source == PROBLEMS and not Path(source).exists():
        prompts = _problems(tokenizer, data, options)
    else:
        documents = data.read_texts(Path(source))[: options.prompts]
        prompts = [tokenizer.encode(each.prompt or each.text) for each in documents]
    cut = [prompt[: length // 2] for prompt in prompts if prompt]
    if not cut:
        raise ExportError(f"--data {source}: got no prompt, expected one at least")
    written = data.continue_prompts(model, cut, length, options.seed)
    texts = [WrittenText(ids=(*prompt, *after), given=len(prompt)) for prompt, after in zip(cut, written, strict=True)]
    return _long_enough(texts, f"--data {source}")


def read_continuations(checkpoint: Checkpoint, path: Path, data: TuningData, options: TextOptions) -> list[WrittenText]:
    """Return texts of a file that the model has written before.

    Raises:
        ExportError: there is no file, no tokenizer, or no text that is long enough.
        RequestError: the file cannot be read.
    """
    if not path.is_file():
        raise ExportError(f"--continuations {path}: got no file, expected texts that the model has written")
    length = _length(checkpoint, options)
    tokenizer = need_tokenizer(checkpoint)
    texts = [
        WrittenText(
            ids=tuple(tokenizer.encode(each.prompt + each.text)[:length]),
            given=len(tokenizer.encode(each.prompt)) if each.prompt else 0,
        )
        for each in data.read_texts(path)[: options.prompts]
    ]
    return _long_enough(texts, f"--continuations {path}")


def _length(checkpoint: Checkpoint, options: TextOptions) -> int:
    return min(options.length, checkpoint.longest_context or options.length)


def _problems(tokenizer: Any, data: TuningData, options: TextOptions) -> list[list[int]]:
    """Hard problems as the chat template writes them, as token ids."""
    if not tokenizer.chat_template:
        raise ExportError(
            f"--data {PROBLEMS}: got a tokenizer without a chat template, expected one; give a file of prompts"
        )
    prompts: list[list[int]] = []
    for problem in data.make_problems(f"demand {options.seed}"):
        if problem.level == HARD:
            asked = [{"role": "user", "content": problem.question}]
            text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            prompts.append(tokenizer.encode(text, add_special_tokens=False))
        if len(prompts) == options.prompts:
            break
    return prompts


def _long_enough(texts: Sequence[WrittenText], where: str) -> list[WrittenText]:
    """The texts with enough positions; the others are named on standard error."""
    kept = []
    for number, text in enumerate(texts, start=1):
        count = max(0, len(text.ids) - text.first)
        if count >= LEAST:
            kept.append(text)
        else:
            print(
                f"{where}: text {number} is left out: {len(text.ids)} tokens, {text.given} of them the prompt's, have {count} that "
                f"count, fewer than {LEAST}",
                file=sys.stderr,
            )
    if not kept:
        raise ExportError(
            f"{where}: got no text of {LEAST} tokens of the model's own after the first third, expected one at least; give prompts "
            "that it answers at length"
        )
    return kept
