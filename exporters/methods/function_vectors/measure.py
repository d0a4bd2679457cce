"""Measures how often a model ranks the answer first, for prompts of any length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from transformers import PreTrainedModel

from enginewright.exporters.methods.function_vectors.attention_layers import last_logits
from enginewright.exporters.methods.function_vectors.prompts import TokenPrompt

ROWS = 16
"""The most prompts of one pass."""


def target_ranks(model: PreTrainedModel, prompts: Sequence[TokenPrompt]) -> list[int]:
    """Return the rank of each prompt's target among all tokens, from 1; of equal logits, the target counts as first."""
    return [rank for rank, _ in _measure(model, prompts)]


def target_hits(model: PreTrainedModel, prompts: Sequence[TokenPrompt]) -> tuple[int, float]:
    """Return how many targets rank first, and the mean log-probability of the targets."""
    found = _measure(model, prompts)
    return sum(rank == 1 for rank, _ in found), sum(score for _, score in found) / max(len(found), 1)


def _measure(model: PreTrainedModel, prompts: Sequence[TokenPrompt]) -> list[tuple[int, float]]:
    """The rank and the log-probability of each target. Prompts of one length share a pass, so that none is padded."""
    found: list[tuple[int, float]] = [(0, 0.0)] * len(prompts)
    for places in batches(prompts, ROWS):
        rows = torch.tensor([prompts[place].ids for place in places], device=model.device)
        targets = torch.tensor([prompts[place].target for place in places], device=model.device)[:, None]
        with torch.no_grad():
            scores = last_logits(model, rows).float().log_softmax(-1)
        own = scores.gather(1, targets)
        ranks = 1 + (scores > own).sum(1)
        for place, rank, score in zip(places, ranks.tolist(), own[:, 0].tolist(), strict=True):
            found[place] = (rank, score)
    return found


def batches(prompts: Sequence[TokenPrompt], rows: int) -> Iterator[list[int]]:
    """Yield the places of prompts of one length, `rows` at most."""
    of_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        of_length.setdefault(len(prompt.ids), []).append(place)
    for places in of_length.values():
        waiting = iter(places)
        while batch := list(islice(waiting, rows)):
            yield batch
