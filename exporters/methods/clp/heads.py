"""CLP's extra heads and length classifier in torch: modules, losses and labels.

Source: arXiv 2606.10935, sections IV-B and V-A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from enginewright.exporters.methods.clp.head_set import HeadShape
from enginewright.exporters.methods.clp.lengths import accept_lengths

IGNORED = -100  # the target of a position that has none
POSITIONS = 1024  # that predict at once: their logits are in memory


class Head(torch.nn.Module):
    """One head: H(h) = W2 gelu(W1 h + b1) + b2, with the exact (erf) form of GELU; `Heads` creates it."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.up = torch.nn.Linear(shape.hidden_size, shape.head_hidden)
        self.out = torch.nn.Linear(shape.head_hidden, shape.vocab_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of states [..., d]."""
        logits: torch.Tensor = self.out(torch.nn.functional.gelu(self.up(states)))
        return logits


class Heads(torch.nn.Module):
    """The k - 1 heads; training creates it.

    `heads[j - 1]` predicts the token j + 1 positions after the one whose state it reads.
    """

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(Head(shape) for _ in range(shape.extra))

    def losses(self, states: torch.Tensor, targets: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield each head's share of the loss, so that only one head's logits need exist at a time.

        The sum of the shares is the mean cross-entropy over the heads.

        states: [P, d].
        targets: int64 [P, k - 1], IGNORED where there is none.
        """
        for head, target in zip(self.heads, targets.T, strict=True):
            yield torch.nn.functional.cross_entropy(head(states), target, ignore_index=IGNORED) / len(self.heads)

    @torch.no_grad()
    def predict(self, states: torch.Tensor) -> torch.Tensor:
        """The tokens that the heads predict for states [P, d], int64 [P, k - 1]; POSITIONS are computed at a time."""
        parts = torch.split(states, POSITIONS)
        return torch.cat([torch.stack([head(part).argmax(-1) for head in self.heads], dim=-1) for part in parts])


def data_targets(ids: Sequence[int], extra: int) -> NDArray[np.int64]:
    """The targets of the heads from the text itself: at position t, head j is to predict token t + 1 + j; int64 [T, extra]."""
    return _shifted(np.asarray(ids, np.int64), 2, extra)


def backbone_targets(best: NDArray[np.int64], extra: int) -> NDArray[np.int64]:
    """The targets of the heads from the backbone's choices, where best[t] is the token it puts after position t."""
    return _shifted(best, 1, extra)


def _shifted(tokens: NDArray[np.int64], first: int, count: int) -> NDArray[np.int64]:
    """An array with tokens[t + first + j] at [t, j], and IGNORED beyond the end."""
    padded = np.concatenate([tokens, np.full(first + count, IGNORED, np.int64)])
    shifted: NDArray[np.int64] = padded[np.arange(len(tokens))[:, None] + first + np.arange(count)]
    return shifted


def length_labels(
    predicted: NDArray[np.int64], targets: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return a mask of the positions that have all targets, and L* of these positions."""
    whole: NDArray[np.bool_] = (targets != IGNORED).all(axis=1)
    return whole, accept_lengths(predicted[whole], targets[whole])


def classifier_loss(classifier: torch.nn.Linear, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of the lengths; all classes have the same weight."""
    return torch.nn.functional.cross_entropy(classifier(states), labels)
