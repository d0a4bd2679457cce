"""The losses of unlearning, and the strength of what can still be extracted.

Source: arXiv 2606.10989, equations 7, 8 and 21 to 24; extraction strength as TOFU's evaluation defines it.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def token_mean_loss(logits: torch.Tensor, targets: torch.Tensor, is_response: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood in nats over the tokens of the response, a scalar.

    logits: [T, V], row t the prediction of targets[t].
    targets: int64 [T].
    is_response: bool [T], false for prompt, padding and special tokens after the end.

    Raises:
        ValueError: no token is of the response.
    """
    if not bool(is_response.any()):
        raise ValueError("got no token of the response, expected one or more")
    if not bool(is_response.all()):
        logits, targets = logits[is_response], targets[is_response]
    return functional.cross_entropy(logits, targets)


def objective(
    safe: torch.Tensor | float,
    undesired: torch.Tensor | float,
    retain: torch.Tensor | float,
    forget_weight: float,
    retain_weight: float,
) -> torch.Tensor | float:
    """Return safe - forget_weight * undesired + retain_weight * retain, each of them a mean loss in nats.

    It has no lower bound: the undesired answers' loss grows without end. The number of steps and the other two stop it.
    """
    return safe - forget_weight * undesired + retain_weight * retain


def preference_loss(undesired: torch.Tensor, reference: torch.Tensor, tokens: int, beta: float) -> torch.Tensor:
    """Return NPO's loss of one undesired answer, 2 / beta * log(1 + (p / p_reference)^beta).

    undesired, reference: the answer's mean loss over its tokens, in the trained model and in the one before.
    tokens: of the answer.

    Source: Zhang et al., arXiv 2404.05868, equation 3.
    """
    return 2 / beta * functional.softplus(beta * tokens * (reference - undesired))


def extraction_strength(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the share of an answer's tokens at its end that the model says by itself: 1 - (last wrong index + 1) / n.

    predicted: int64 [n], the greedy token at each position after the true tokens before it.
    truth: int64 [n].

    Raises:
        ValueError: the shapes differ, or there are no tokens.
    """
    if predicted.shape != truth.shape or truth.dim() != 1 or not len(truth):
        raise ValueError(
            f"got {list(predicted.shape)} and {list(truth.shape)} tokens, expected the same number, 1 or more"
        )
    wrong = (predicted != truth).nonzero()
    return 1 - (int(wrong[-1]) + 1) / len(truth) if len(wrong) else 1.0
