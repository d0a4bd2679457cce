"""Engines of tiny-reasoner, its prompts, and what tests of requests in one batch ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import LLM, Sampling
from enginewright.runtime.scheduling.scheduler import Scheduler
from tests.support.paths import EXAMPLES

MODEL = EXAMPLES / "tiny-reasoner"
QUESTIONS = ("3 + 4 * 2", "9 - 5", "12 + 30 - 7 + 1", "8 * 2")
Tokens = list[tuple[int, ...]]


class Engines:
    """Engines of the model, each built once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, *apply: str, **changes: object) -> Path:
        """The engine with these methods and changes of its recipe."""
        path = self.root / f"{hash((apply, str(changes))) & 0xFFFFFFFF:x}"
        if not path.exists():
            sizes = {"kv_bits": 32, "max_batch": 4, "max_context": 1024, **changes}
            build(str(MODEL), path, Recipe(apply=tuple(map(parse_method, apply)), **sizes), "onnxruntime")  # type: ignore[arg-type]
        return path


def prompts_of(llm: LLM, times: int = 1) -> list[list[int]]:
    """The tokens of each question, as often as `times`."""
    return [llm.apply_chat_template([{"role": "user", "content": each}]) * times for each in QUESTIONS]


def together(llm: LLM, prompts: Sequence[list[int]], samplings: Sequence[Sampling]) -> Tokens:
    """The tokens of requests in one batch."""
    return [done.token_ids for done in llm.generate(prompts, samplings)]


def alone(llm: LLM, prompts: Sequence[list[int]], samplings: Sequence[Sampling]) -> Tokens:
    """The tokens of the same requests, one after another."""
    return [llm.generate(prompt, sampling)[0].token_ids for prompt, sampling in zip(prompts, samplings, strict=True)]


def count_preemptions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list of one number, how often a scheduler has given up a row from now on."""
    preempted, own = [0], Scheduler._preempt

    def preempt(self: Scheduler, entry: object) -> None:
        preempted[0] += 1
        own(self, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(Scheduler, "_preempt", preempt)
    return preempted
