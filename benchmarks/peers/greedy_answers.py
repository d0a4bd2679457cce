"""Greedy answers of one runtime, with the most probable tokens at each step: what `llama_cpp_answers` compares.

The peers' interpreters import this module, too, so it needs only numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

TOP = 20
"""The most probable tokens that are kept of each step."""

Tokens: TypeAlias = NDArray[np.int32]
Feed: TypeAlias = Callable[[Tokens], NDArray[np.float32]]
"""Reads more tokens of a text; returns the logits [V] after the last one."""


@dataclass(frozen=True)
class GreedyAnswers:
    """The answers of one runtime to P prompts, N tokens each, ends of answers not minded.

    tokens: int32 [P, N].
    top_ids: int32 [P, N, TOP], the most probable tokens of each step, the best first.
    top_logits: float32 [P, N, TOP]: their logits, each step's but for a constant.
    """

    tokens: Tokens
    top_ids: Tokens
    top_logits: NDArray[np.float32]

    def gap(self, prompt: int, step: int, first: int, second: int) -> float:
        """The first token's logit minus the second one's; nan where one of the two is not among the kept ones."""
        ids, logits = self.top_ids[prompt, step], self.top_logits[prompt, step]
        found = [logits[ids == token] for token in (first, second)]
        return float(found[0][0] - found[1][0]) if all(map(len, found)) else float("nan")

    def write(self, file: Path) -> None:
        """Write an npz file."""
        np.savez(file, tokens=self.tokens, top_ids=self.top_ids, top_logits=self.top_logits)

    @classmethod
    def read(cls, file: Path) -> GreedyAnswers:
        """Read what `write` has written."""
        with np.load(file) as found:
            return cls(found["tokens"], found["top_ids"], found["top_logits"])


def write_prompts(file: Path, prompts: list[list[int]]) -> None:
    """Write token ids of prompts as an npz file."""
    np.savez(file, lengths=[len(ids) for ids in prompts], ids=np.concatenate(prompts).astype(np.int32))


def read_prompts(file: Path) -> list[Tokens]:
    """Read what `write_prompts` has written."""
    with np.load(file) as found:
        return np.split(found["ids"], np.cumsum(found["lengths"])[:-1])


def most_probable(logits: NDArray[np.float32]) -> tuple[Tokens, NDArray[np.float32]]:
    """Ids and logits of the TOP highest of logits [V], the highest first; of equal ones the lowest id first."""
    kept = np.sort(np.argpartition(-logits, TOP)[:TOP])
    order = kept[np.argsort(-logits[kept], kind="stable")]
    return order.astype(np.int32), logits[order]


def answer_greedily(prompts: list[Tokens], new_tokens: int, feed: Feed, forget: Callable[[], None]) -> GreedyAnswers:
    """Answer every prompt, one after the other, with the most probable token of each step.

    forget: empties the cache before a prompt.
    """
    tokens = np.empty((len(prompts), new_tokens), np.int32)
    top_ids = np.empty((*tokens.shape, TOP), np.int32)
    top_logits = np.empty(top_ids.shape, np.float32)
    for number, prompt in enumerate(prompts):
        forget()
        logits = feed(prompt)
        for step in range(new_tokens):
            top_ids[number, step], top_logits[number, step] = most_probable(logits)
            tokens[number, step] = top_ids[number, step, 0]
            if step + 1 < new_tokens:
                logits = feed(tokens[number, step : step + 1])
    return GreedyAnswers(tokens, top_ids, top_logits)
