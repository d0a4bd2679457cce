"""Tests of CLP's sizes, labels and losses against the values of the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from enginewright.exporters.methods.clp.head_set import HeadShape
from enginewright.exporters.methods.clp.heads import (
    IGNORED,
    Heads,
    backbone_targets,
    classifier_loss,
    data_targets,
    length_labels,
)
from enginewright.exporters.methods.clp.lengths import accept_lengths
from enginewright.exporters.methods.clp.train import Options, fit_classifier

TEXT = [5, 6, 7, 8, 9, 5, 6, 7, 8]
HEADS = [[7, 8, 9, 5, 0, 7, 8, 9, 5], [8, 0, 5, 6, 7, 8, 9, 5, 6]]
LENGTHS = [2, 1, 2, 2, 0, 2]


def shape(hidden: int, vocab: int, k: int, classes: int) -> HeadShape:
    """A head of half the hidden size."""
    return HeadShape(hidden_size=hidden, vocab_size=vocab, k=k, head_hidden=hidden // 2, classes=classes)


@pytest.mark.parametrize(
    ("hidden", "vocab", "count"),
    [(1536, 151936, 118_019_200), (3584, 152064, 279_075_072), (896, 151936, 68_621_120)],
)
def test_parameters_of_a_head(hidden: int, vocab: int, count: int) -> None:
    assert shape(hidden, vocab, 3, 3).head_parameters == count


@pytest.mark.parametrize(
    ("k", "classes", "count"), [(2, 3, 4611), (3, 4, 6148), (4, 5, 7685), (2, 2, 3074), (3, 3, 4611), (4, 4, 6148)]
)
def test_parameters_of_the_classifier(k: int, classes: int, count: int) -> None:
    assert shape(1536, 151936, k, classes).classifier_parameters == count


def test_the_modules_have_those_parameters() -> None:
    sizes = shape(10, 7, 4, 4)
    assert sum(p.numel() for p in Heads(sizes).parameters()) == 3 * sizes.head_parameters


def test_accept_lengths_of_the_paper() -> None:
    np.testing.assert_array_equal(accept_lengths(HEADS, TEXT), LENGTHS)
    np.testing.assert_array_equal(accept_lengths(np.transpose(HEADS), TEXT), LENGTHS)
    np.testing.assert_array_equal(accept_lengths([row[:6] for row in HEADS], TEXT), LENGTHS)
    assert accept_lengths(HEADS, TEXT).dtype == np.int64


def test_accept_lengths_of_aligned_targets() -> None:
    aligned = data_targets(TEXT, 2)
    np.testing.assert_array_equal(aligned[0], [7, 8])
    np.testing.assert_array_equal(aligned[6], [8, IGNORED])
    np.testing.assert_array_equal(accept_lengths(np.transpose(HEADS), aligned)[:6], LENGTHS)
    assert accept_lengths(np.empty((0, 2)), np.empty((0, 2))).shape == (0,)


def test_accept_lengths_of_short_sequences() -> None:
    assert accept_lengths(np.zeros((3, 2)), [1, 2, 3]).shape == (0,)


@pytest.mark.parametrize(
    ("heads", "target", "message"),
    [
        ([1, 2], [1, 2], r"head_tokens: got shape \[2\], expected \[positions, heads\]"),
        ([[1, 2]], [[1]], r"target: got shape \[1, 1\], expected \[1, 2\] as head_tokens, or \[T\]"),
    ],
)
def test_shapes_that_do_not_belong_together(heads: list[int], target: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accept_lengths(heads, target)


def test_labels_count_only_positions_with_every_target() -> None:
    whole, labels = length_labels(np.transpose(HEADS), data_targets(TEXT, 2))
    assert whole.tolist() == [True] * 6 + [False] * 3
    np.testing.assert_array_equal(labels, LENGTHS)


def test_the_backbones_own_choices_are_one_position_nearer() -> None:
    best = np.array([*TEXT[1:], 4])  # a backbone that is always right gives the data's labels, and one position more
    np.testing.assert_array_equal(backbone_targets(best, 2)[:6], data_targets(TEXT, 2)[:6])
    np.testing.assert_array_equal(backbone_targets(best, 2)[6], [8, 4])
    np.testing.assert_array_equal(backbone_targets(best, 2)[7], [4, IGNORED])


def test_the_loss_is_the_mean_of_the_heads_cross_entropies() -> None:
    torch.manual_seed(0)
    heads, states = Heads(shape(8, 10, 3, 3)), torch.randn(len(TEXT), 8)
    targets = torch.from_numpy(data_targets(TEXT, 2))
    expected = []
    for j, head in enumerate(heads.heads, start=1):
        logits = head(states)[: len(TEXT) - 1 - j].log_softmax(-1)
        expected.append(-logits[range(len(logits)), TEXT[1 + j :]].mean())
    total = torch.stack([*heads.losses(states, targets)]).sum()
    torch.testing.assert_close(total, torch.stack(expected).mean())
    assert heads.predict(states).shape == (len(TEXT), 2)


def test_the_classifier_learns_lengths_that_a_plane_separates() -> None:
    torch.manual_seed(0)
    states = torch.randn(2000, 6)
    labels = (states @ torch.randn(3, 6).T).argmax(1)
    classifier = torch.nn.Linear(6, 3)
    fit_classifier(classifier, states, labels, Options(classifier_rate=0.2, classifier_epochs=40))
    prior = torch.bincount(labels) / len(labels)
    with torch.no_grad():
        assert classifier_loss(classifier, states, labels) < -(prior * prior.log()).sum()
        assert (classifier(states).argmax(1) == labels).float().mean() > 0.99
