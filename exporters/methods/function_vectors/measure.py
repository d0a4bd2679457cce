"""Measures how often a model ranks the answer first, for prompts of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from transformers import PreTrainedModel

from enginewright.exporters.methods.function_vectors.attention_layers import last_logits
from enginewright.exporters.methods.function_vectors.last_tokens import LastTokens
from enginewright.exporters.methods.function_vectors.prompts import TokenPrompt

ROWS = 16
"""The most prompts of one pass."""


class PromptTargets:
    """Prompts whose targets are ranked, and ranked again while something changes how the model treats their last tokens.

    is_repeated: keep the cache of all tokens but the last ones, so that every measure after the first is cheap.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[TokenPrompt], *, is_repeated: bool = False) -> None:
        self._count = len(prompts)
        self._batches: list[tuple[list[int], torch.Tensor, Callable[[], torch.Tensor]]] = []
        for places in _batches(prompts):
            rows = torch.tensor([prompts[place].ids for place in places], device=model.device)
            targets = torch.tensor([prompts[place].target for place in places], device=model.device)[:, None]
            logits = LastTokens(model, rows).logits if is_repeated else partial(last_logits, model, rows)
            self._batches.append((places, targets, logits))

    def ranks(self) -> list[int]:
        """The rank of each target among all tokens, from 1; of equal logits, the target counts as first."""
        return [rank for rank, _ in self._measure()]

    def hits(self) -> tuple[int, float]:
        """How many targets rank first, and the mean log-probability of the targets."""
        found = self._measure()
        return sum(rank == 1 for rank, _ in found), sum(score for _, score in found) / max(len(found), 1)

    def _measure(self) -> list[tuple[int, float]]:
        """The rank and the log-probability of each target."""
        found: list[tuple[int, float]] = [(0, 0.0)] * self._count
        for places, targets, logits in self._batches:
            with torch.no_grad():
                scores = logits().float().log_softmax(-1)
            own = scores.gather(1, targets)
            ranks = 1 + (scores > own).sum(1)
            for place, rank, score in zip(places, ranks.tolist(), own[:, 0].tolist(), strict=True):
                found[place] = (rank, score)
        return found


def target_ranks(model: PreTrainedModel, prompts: Sequence[TokenPrompt]) -> list[int]:
    """Return the rank of each prompt's target among all tokens, from 1; of equal logits, the target counts as first."""
    return PromptTargets(model, prompts).ranks()


def target_hits(model: PreTrainedModel, prompts: Sequence[TokenPrompt]) -> tuple[int, float]:
    """Return how many targets rank first, and the mean log-probability of the targets."""
    return PromptTargets(model, prompts).hits()


def _batches(prompts: Sequence[TokenPrompt]) -> Iterator[list[int]]:
    """The places of prompts of one length, ROWS at most; prompts of one length share a pass, so that none is padded."""
    of_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        of_length.setdefault(len(prompt.ids), []).append(place)
    for places in of_length.values():
        waiting = iter(places)
        while batch := list(islice(waiting, ROWS)):
            yield batch
