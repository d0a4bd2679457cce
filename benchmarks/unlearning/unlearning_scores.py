"""Scores of a model on answers: what can be extracted, what it says by itself, and how likely text is to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from enginewright.exporters.methods.nsru import extraction_strength
from enginewright.exporters.methods.nsru.adapted_model import AdaptedModel
from enginewright.exporters.methods.nsru.response_tokens import ResponseTokens
from enginewright.exporters.methods.nsru.retained_inputs import length_batches


def strengths(
    model: AdaptedModel, texts: Sequence[ResponseTokens], states: Sequence[torch.Tensor] | None = None
) -> list[float]:
    """The extraction strength of each answer.

    states: of each sequence before the first adapted block; None: the whole model runs.
    """
    found = [0.0] * len(texts)
    with torch.no_grad():
        for batch in length_batches(texts, range(len(texts))):
            own = None if states is None else [states[i] for i in batch]
            for i, logits in zip(batch, model.logits([texts[i] for i in batch], own), strict=True):
                found[i] = extraction_strength(logits.argmax(-1), torch.tensor(texts[i].ids[texts[i].prompt :]))
    return found


def mean_strength(
    model: AdaptedModel, texts: Sequence[ResponseTokens], states: Sequence[torch.Tensor] | None = None
) -> float:
    """The mean extraction strength."""
    return float(np.mean(strengths(model, texts, states)))
