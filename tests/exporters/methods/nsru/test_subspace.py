"""Tests of the retained subspace and of the losses against reference values and their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from enginewright.exporters.methods.nsru import (
    extraction_strength,
    objective,
    project,
    retain_basis,
    token_mean_loss,
)
from enginewright.exporters.methods.nsru.subspace import InputSamples
from enginewright.exporters.methods.nsru.unlearning_losses import preference_loss

DIGITS = 6e-9  # half a unit of the last of eight printed digits


def count(n: int) -> torch.Tensor:
    return torch.arange(1, n + 1, dtype=torch.float64)


SCALES = torch.tensor([3, 2, 1.5, 1, 0.5, 0.3, 0.2, 0.1], dtype=torch.float64)
SAMPLES = (
    torch.sin(0.4 * count(12)[:, None] * count(8)) + 0.5 * torch.cos(0.15 * count(12)[:, None] * count(8) ** 2)
) * SCALES
A = torch.sin(0.6 * count(2)[:, None] * count(8) + 0.2)
B = torch.cos(0.3 * count(6)[:, None] * count(2))
FORGOTTEN = torch.sin(1.1 * count(8) + 0.7)
DELTA = torch.sin(count(6))
VALUES = (10.68727842, 6.47470735, 2.82166978, 2.42163593, 1.36739706, 0.71083708, 0.46386353, 0.11355834)

# energy: k, |dW|, |dW X'|, |dW x|, |P x|^2, dW[0, 0], start and norm of dL/dA, start of dL/dB
REFERENCE = {
    0.90: (2, 3.62470099, 5.67379687, 5.15464383, 2.90897938, 0.01783544, 5.23502358),
    0.95: (3, 3.26797751, 3.55184520, 3.99272292, 2.25300166, 0.00949063, 4.60711525),
    0.99: (5, 2.88962663, 1.22949110, 2.89232337, 1.60227310, -0.00518286, 3.88522873),
}
GRADIENTS = {
    0.90: ((0.01564465, -0.01744090, -0.97038825), (-2.03326337, 2.34909086)),
    0.95: ((0.03908312, 0.06239034, 0.07534107), (-1.36069021, 1.89524855)),
    0.99: ((0.00813734, 0.03361270, -0.17590995), (-1.20436166, 1.28875066)),
}


def near(*values: float) -> object:
    return pytest.approx(values if len(values) > 1 else values[0], abs=DIGITS)


def test_the_samples_are_those_of_the_reference() -> None:
    assert tuple(torch.linalg.svdvals(SAMPLES).tolist()) == near(*VALUES)
    assert float((B @ A).norm()) == near(4.69164562)
    assert float((B @ A @ SAMPLES.T).norm()) == near(24.42269345)
    assert float((B @ A @ FORGOTTEN).norm()) == near(6.55966518)


@pytest.mark.parametrize("energy", REFERENCE)
def test_reference_values(energy: float) -> None:
    basis = retain_basis(SAMPLES, energy)
    change, outside = B @ project(A, basis), project(FORGOTTEN[None], basis)[0]
    slope = B.T @ torch.outer(DELTA, outside)
    found = (change.norm(), (change @ SAMPLES.T).norm(), (change @ FORGOTTEN).norm(), outside.square().sum())
    k, *expected = REFERENCE[energy]
    assert basis.shape == (8, k)
    assert tuple(map(float, (*found, change[0, 0], slope.norm()))) == near(*expected)
    a, b = GRADIENTS[energy]
    assert tuple(slope[0, :3].tolist()) == near(*a)
    assert tuple(torch.outer(DELTA, project(A, basis) @ FORGOTTEN)[0].tolist()) == near(*b)


@pytest.mark.parametrize("energy", REFERENCE)
def test_autograd_gives_the_formulas(energy: float) -> None:
    basis, a, b = retain_basis(SAMPLES, energy), A.clone().requires_grad_(), B.clone().requires_grad_()
    (DELTA @ (b @ project(a, basis) @ FORGOTTEN)).backward()
    assert a.grad is not None and b.grad is not None
    outside = project(FORGOTTEN[None], basis)[0]
    torch.testing.assert_close(a.grad, B.T @ torch.outer(DELTA, outside))
    torch.testing.assert_close(b.grad, torch.outer(DELTA, project(A, basis) @ FORGOTTEN))
    torch.testing.assert_close(project(a.grad, basis), a.grad)  # projected by itself


@pytest.mark.parametrize(("most", "ks"), [(8, (2, 3, 5)), (4, (2, 3, 4)), (3, (2, 2, 3))])
def test_the_capped_spectrum_is_the_whole(most: int, ks: tuple[int, ...]) -> None:
    assert tuple(retain_basis(SAMPLES, energy, most).shape[1] for energy in REFERENCE) == ks


def test_energy_of_all_singular_values() -> None:
    """With K = 3 the three hold 95.3 % of all: .9 is reached with two, .99 not at all."""
    assert [retain_basis(SAMPLES, energy, 3, of_total=True).shape[1] for energy in (0.9, 0.95, 0.99)] == [2, 3, 3]


@pytest.mark.parametrize("shape", [(1, 5), (3, 7), (40, 5), (7, 7)])
def test_bases_are_orthonormal_and_hold_their_energy(shape: tuple[int, int]) -> None:
    samples = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    basis = retain_basis(samples, 0.7)
    k = basis.shape[1]
    assert basis.dtype == torch.float32
    torch.testing.assert_close(basis.T @ basis, torch.eye(k), atol=1e-5, rtol=0)
    squares = torch.linalg.svdvals(samples.double()).square()
    residual = project(samples.double(), basis.double()).square().sum() / samples.double().square().sum()
    assert float(residual) == pytest.approx(1 - float(squares[:k].sum() / squares.sum()), abs=1e-6)
    assert float(squares[:k].sum()) >= 0.7 * float(squares.sum()) > float(squares[: k - 1].sum())


def test_ends_of_the_scale() -> None:
    """K = 0 changes nothing, bit for bit; with k = d nothing is left."""
    for none in (retain_basis(SAMPLES, 0.0), retain_basis(torch.zeros(3, 8)), retain_basis(SAMPLES, 0.9, 0)):
        assert none.shape == (8, 0)
        assert torch.equal(project(A.to(none.dtype), none), A.to(none.dtype))
    assert retain_basis(torch.empty(0, 4)).shape == (4, 0)
    whole = retain_basis(SAMPLES, 1.0)
    assert whole.shape == (8, 8) and float(project(A, whole).norm()) < 1e-12


def test_a_part_in_the_subspace_changes_nothing() -> None:
    basis = retain_basis(SAMPLES, 0.95).float()
    moved = A.float() + torch.randn(2, 3, generator=torch.Generator().manual_seed(0)) @ basis.T
    torch.testing.assert_close(project(moved, basis), project(A.float(), basis), atol=1e-5, rtol=0)
    change = B.float() @ project(A.float(), basis)
    assert float((change @ basis).norm()) <= 1e-5 * float(change.norm())


@pytest.mark.parametrize("samples", [torch.ones(3), torch.full((2, 2), float("nan"))])
def test_no_matrix_of_numbers(samples: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a matrix"):
        retain_basis(samples)


@pytest.mark.parametrize("pieces", [(200,), (1,) * 50, (7, 90, 1, 33), (0, 3)])
@pytest.mark.parametrize("centred", [False, True])
def test_samples_are_kept_in_few_rows(pieces: tuple[int, ...], centred: bool) -> None:
    generator = torch.Generator().manual_seed(len(pieces))
    given = [torch.randn(n, 6, generator=generator) @ torch.diag(torch.arange(1.0, 7)) + 2 for n in pieces]
    samples = InputSamples(6)
    for each in given:
        samples.add(each)
    whole = torch.cat(given).double()
    mean = whole.mean(0)
    rows, expected = samples.rows(centred=centred), whole - mean if centred else whole
    assert samples.count == len(whole) and len(rows) <= 3 * 6 + 2
    torch.testing.assert_close(rows.T @ rows, expected.T @ expected)
    assert samples.mean_share == pytest.approx(len(whole) * float(mean.square().sum() / whole.square().sum()))
    own = samples.basis(0.8, 4, centred=centred, of_total=False).double()
    basis = retain_basis(expected, 0.8, 4)
    torch.testing.assert_close(own @ own.T, basis @ basis.T, atol=1e-6, rtol=0)


# ---- losses --------------------------------------------------------------------------------

LOGITS = 2 * torch.cos(0.8 * count(5)[:, None] * count(7))
TARGETS = torch.tensor([1, 2, 3, 4, 0])
RESPONSE = torch.tensor([False, False, True, True, True])


def test_loss_of_the_response_alone() -> None:
    assert float(token_mean_loss(LOGITS, TARGETS, RESPONSE)) == near(4.370038318)
    log = LOGITS.log_softmax(-1)
    assert float(token_mean_loss(LOGITS, TARGETS, RESPONSE)) == pytest.approx(
        -sum(float(log[t, TARGETS[t]]) for t in (2, 3, 4)) / 3
    )


def test_prompt_and_padding_do_not_count() -> None:
    expected = token_mean_loss(LOGITS, TARGETS, RESPONSE)
    other = LOGITS.clone()
    other[:2] = 100.0
    padded = torch.cat([other, torch.full((3, 7), -50.0, dtype=torch.float64)])
    targets = torch.cat([TARGETS.clone().index_fill(0, torch.tensor([0, 1]), 6), torch.zeros(3, dtype=torch.int64)])
    mask = torch.cat([RESPONSE, torch.zeros(3, dtype=torch.bool)])
    assert float(token_mean_loss(padded, targets, mask)) == float(expected)
    with pytest.raises(ValueError, match="no token of the response"):
        token_mean_loss(LOGITS, TARGETS, torch.zeros(5, dtype=torch.bool))


@pytest.mark.parametrize(("weights", "expected"), [((1, 0.5), 0.7), ((5, 3), -4.3)])
def test_objective(weights: tuple[float, float], expected: float) -> None:
    assert objective(2, 1.5, 0.4, *weights) == pytest.approx(expected)


def test_extraction_strength() -> None:
    truth = torch.tensor([5, 9, 2, 3, 4])
    assert extraction_strength(torch.tensor([5, 1, 2, 3, 4]), truth) == pytest.approx(0.6)
    assert extraction_strength(truth, truth) == 1
    assert extraction_strength(torch.tensor([5, 9, 2, 3, 0]), truth) == 0
    for wrong in (truth[:3], truth[None]):
        with pytest.raises(ValueError, match="expected the same number"):
            extraction_strength(wrong, truth)


def test_npo_is_bounded_and_falls_as_the_answer_gets_unlikely() -> None:
    """2 / beta log 2 where nothing has changed; 0 in the end. Its slope there is that of gradient ascent on the sum."""
    reference = torch.tensor(1.5, dtype=torch.float64)
    now = reference.clone().requires_grad_()
    loss = preference_loss(now, reference, 7, 0.1)
    assert float(loss.detach()) == pytest.approx(20 * math.log(2))
    loss.backward()
    assert float(now.grad) == pytest.approx(-7)
    assert float(preference_loss(reference + 100, reference, 7, 0.1)) == pytest.approx(0, abs=1e-12)
