"""Accuracy of a set of heads on held-out text, per position and per threshold.

Every position counts once. In a run, the length of an emission decides which position comes next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from enginewright.exporters.methods.clp.heads import IGNORED, Heads, classifier_loss
from enginewright.exporters.methods.clp.lengths import accept_lengths

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The results for one value of tau; `measure` creates it.

    tau: the value.
    emitted: mean number of tokens in a step.
    verified: mean number of these that the backbone would choose, too.
    agreement: share of the emitted extra tokens that the backbone would choose, given that those before them are right.
    """

    tau: float
    emitted: float
    verified: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class HeadsReport:
    """The accuracy of heads and classifier; `measure` creates it.

    positions: how many positions were measured.
    accuracy: of each head, the share of positions where it predicts the text.
    agreement: of each head, the share of positions where it predicts the backbone's choice.
    longest: mean number of tokens in a step if the classifier always knew how many heads agree with the backbone.
    classifier_loss: cross-entropy of the classifier.
    prior_loss: cross-entropy of a classifier that knows only how frequent each length is.
    thresholds: the results for each value of tau.
    """

    positions: int
    accuracy: tuple[float, ...]
    agreement: tuple[float, ...]
    longest: float
    classifier_loss: float
    prior_loss: float
    thresholds: tuple[Threshold, ...]


@torch.no_grad()
def measure(
    heads: Heads, classifier: torch.nn.Linear, states: torch.Tensor, own: Ints, chosen: Ints, label_source: str
) -> HeadsReport:
    """Measure the heads on some positions.

    states: [P, d].
    own: int64 [P, k - 1], the targets in the text, IGNORED where there is none.
    chosen: int64 [P, k - 1], the backbone's choices.
    label_source: whether the classifier's labels come from the backbone or from the text (data).
    """
    whole = (own != IGNORED).all(axis=1)
    states, own, chosen = states[torch.from_numpy(whole)], own[whole], chosen[whole]
    predicted = heads.predict(states).numpy()
    right = accept_lengths(predicted, chosen)
    labels = right if label_source == "backbone" else accept_lengths(predicted, own)
    labels = np.minimum(labels, classifier.out_features - 1)
    frequent = np.bincount(labels) / max(1, len(labels))
    probabilities = classifier(states).softmax(-1).numpy()
    return HeadsReport(
        positions=len(states),
        accuracy=tuple((predicted == own).mean(axis=0).tolist()),
        agreement=tuple((predicted == chosen).mean(axis=0).tolist()),
        longest=1 + float(right.mean()),
        classifier_loss=float(classifier_loss(classifier, states, torch.from_numpy(labels))),
        prior_loss=float(-sum(share * np.log(share) for share in frequent if share > 0)),
        thresholds=tuple(_thresholds(probabilities, right, predicted.shape[1])),
    )


def _thresholds(probabilities: NDArray[np.float32], right: Ints, extra: int) -> Iterator[Threshold]:
    likeliest = np.minimum(probabilities.argmax(axis=1), extra)
    for tau in THRESHOLDS:
        lengths = np.where(probabilities.max(axis=1) < tau, 0, likeliest)
        verified = np.minimum(lengths, right)
        yield Threshold(
            tau=tau,
            emitted=1 + float(lengths.mean()),
            verified=1 + float(verified.mean()),
            agreement=float(verified.sum() / max(1, lengths.sum())),
        )
