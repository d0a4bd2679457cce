"""Tests of probes, gates and merges: the reference values of the method's description, its invariants, and dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from enginewright.exporters.methods.tada import gates, merge, probe
from enginewright.exporters.methods.tada.components import decompose
from enginewright.exporters.methods.tada.layer_gates import ramp_gates, ratio_gates, spearman
from enginewright.runtime.errors import ExportError

Doubles = NDArray[np.float64]
Pair = tuple[Doubles, Doubles]

RHO_TASK = (0.533991450, 0.492035242, 0.626222094, 0.468133840)
RHO_DOMAIN = (0.550135692, 0.555524877, 0.628850940, 0.683948272)
GATES = (0.331769998, 0.479354075, 0.294672415, 0.839649060)
KEPT = (("11", "00"), ("00", "11"), ("11", "01"), ("01", "11"))
COSINES = (
    (-0.58569714, 0.00371899, -0.00888362, -0.56220682),
    (-0.70220258, 0.02230726, 0.01118418, -0.52069365),
    (-0.69177600, 0.19649960, 0.07499125, -0.18484662),
    (-0.42536405, 0.32095190, 0.06557369, 0.25446315),
)
NORMS = (2.78240141, 3.53235562, 3.12558304, 4.78420803)
DISTANCES = (2.15208835, 2.18908902, 1.77184391, 0.58811916)
FIRST = (
    (0.51095777, -0.52418712, -0.58329722),
    (0.00271864, 0.68183009, 0.58324128),
    (0.87080471, 0.74682803, 0.29990500),
    (0.72735522, 1.05368827, 0.85938674),
)


def reference(layer: int) -> tuple[Pair, Pair, Doubles]:
    """The task's and the domain's factors, and the inputs of the description's example."""
    i, k, j, n = np.arange(1, 7)[:, None], np.arange(1, 3), np.arange(1, 6), np.arange(1, 5)[:, None]
    task = np.sin(0.9 * i * k + 0.5 * layer), np.cos(0.7 * k[:, None] * j - 0.3 * layer)
    domain = (
        np.sin(1.3 * i * k + 0.4 + 0.8 * layer) - 0.6 * task[0],
        np.cos(0.5 * k[:, None] * j + 0.2 + 0.6 * layer) + 0.5 * task[1],
    )
    return task, domain, np.sin(0.31 * n * j + 0.1 + 0.9 * layer)


def random_pair(seed: int, out: int = 20, rank: int = 4, into: int = 30) -> Pair:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((out, rank)), generator.standard_normal((rank, into))


def flags(kept: NDArray[np.bool_]) -> str:
    return "".join(str(int(each)) for each in kept)


@pytest.mark.parametrize("layer", range(4))
def test_probes_are_the_reference_values(layer: int) -> None:
    task, domain, inputs = reference(layer)
    assert probe(*task, inputs) == pytest.approx(RHO_TASK[layer], abs=5.1e-10)
    assert probe(*domain, inputs) == pytest.approx(RHO_DOMAIN[layer], abs=5.1e-10)


def test_gates_are_the_reference_values() -> None:
    assert gates(RHO_TASK, RHO_DOMAIN) == pytest.approx(GATES, abs=1e-8)  # the probes are rounded to nine digits
    probes = np.array([[probe(*pair, x) for pair in (task, domain)] for task, domain, x in map(reference, range(4))])
    assert gates(*probes.T) == pytest.approx(GATES, abs=5.1e-10)


@pytest.mark.parametrize("layer", range(4))
def test_merges_are_the_reference_values(layer: int) -> None:
    task, domain, _ = reference(layer)
    b, a, info = merge(task, domain, GATES[layer])
    gated = (1 - GATES[layer]) * task[0] @ task[1] + GATES[layer] * domain[0] @ domain[1]
    assert (flags(info["kept_task"]), flags(info["kept_domain"])) == KEPT[layer]
    assert info["cosines"].ravel() == pytest.approx(COSINES[layer], abs=5.1e-9)
    assert np.linalg.norm(b @ a) == pytest.approx(NORMS[layer], abs=1e-8)
    assert np.linalg.norm(b @ a - gated) == pytest.approx(DISTANCES[layer], abs=1e-8)
    assert (b @ a)[0, :3] == pytest.approx(FIRST[layer], abs=1e-8)


def test_one_layer_by_the_ratio() -> None:
    task, domain, _ = reference(0)
    (gate,) = ratio_gates([RHO_TASK[0]], [RHO_DOMAIN[0]])
    assert gate == pytest.approx(0.5074457327, abs=1e-9)
    b, a, info = merge(task, domain, gate)
    assert info["strengths_task"] == pytest.approx([3.59900026, 2.09397785], abs=5.1e-9)
    assert info["strengths_domain"] == pytest.approx([5.11994904, 3.98286811], abs=5.1e-9)
    assert flags(info["kept_task"]) == "00"
    assert np.linalg.svd(b @ a)[1][:2] == pytest.approx([2.59809629, 2.02108943], abs=1e-8)
    b, a, info = merge(task, domain, gate, theta=2, rank=4)
    assert np.linalg.svd(b @ a)[1][:4] == pytest.approx([2.06072581, 1.64093679, 0.57339684, 0.11500082], abs=1e-8)
    b, a, info = merge(task, domain, gate, theta=2)
    assert np.linalg.norm(b @ a) == pytest.approx(2.63424836, abs=1e-8)
    assert info["tail"] == pytest.approx(np.hypot(0.57339684, 0.11500082), abs=1e-8)


@pytest.mark.parametrize("mean", ["mean", "rms"])
def test_the_probe_does_not_depend_on_size_or_split(mean: str) -> None:
    (b, a), inputs = random_pair(0), np.random.default_rng(1).standard_normal((50, 30)).astype(np.float32)
    expected = probe(b, a, inputs, mean=mean)
    mixed = np.random.default_rng(2).standard_normal((4, 4))
    for other in ((3 * b, a), (7 * b, a / 7), (b @ mixed, np.linalg.inv(mixed) @ a), (1e-25 * b, a), (b, 1e20 * a)):
        assert probe(*other, inputs, mean=mean) == pytest.approx(expected, rel=1e-6)
    delta = b @ a
    dense = np.linalg.norm(inputs @ delta.T, axis=1) / np.linalg.norm(inputs, axis=1)
    if mean == "mean":
        assert expected == pytest.approx(dense.mean() / np.linalg.norm(delta), rel=1e-6)
    else:
        moments = inputs.T.astype(np.float64) @ inputs
        rms = np.sqrt(np.trace(delta @ moments @ delta.T) / np.trace(moments)) / np.linalg.norm(delta)
        assert expected == pytest.approx(rms, rel=1e-6)


def test_the_probe_at_the_edges() -> None:
    (b, a), inputs = random_pair(0), np.random.default_rng(1).standard_normal((50, 30))
    assert probe(0 * b, a, inputs) == 0 == probe(b, a, 0 * inputs)
    padded = np.concatenate([inputs, np.zeros((9, 30))])
    for mean in ("mean", "rms"):
        assert probe(b, a, padded, mean=mean) == pytest.approx(probe(b, a, inputs, mean=mean), rel=1e-12)
    isotropic = np.random.default_rng(3).standard_normal((4000, 30))
    assert probe(b, a, isotropic, mean="rms") == pytest.approx(1 / np.sqrt(30), rel=0.03)
    assert probe(b, a, isotropic) == pytest.approx(1 / np.sqrt(30), rel=0.1)
    assert probe(b, a, inputs.reshape(5, 10, 30)) == pytest.approx(probe(b, a, inputs), rel=1e-12)
    with pytest.raises(ExportError, match=r"inputs \[50, 29\], expected \[tokens, 30\]"):
        probe(b, a, inputs[:, 1:])
    with pytest.raises(ExportError, match=r"got B \[20, 4\] and A \[3, 30\]"):
        probe(b, a[1:], inputs)


def test_gates_are_shares() -> None:
    generator = np.random.default_rng(0)
    task, domain = generator.random(9), generator.random(9)
    assert gates(task, domain) + gates(domain, task) == pytest.approx(np.ones(9), abs=1e-12)  # with no shift
    assert gates(task, 5 * domain) == pytest.approx(gates(task, domain), abs=1e-6)  # the mean layer has .5
    assert gates(task, task) == pytest.approx(np.full(9, 0.5), abs=1e-12)
    assert gates([0.3], [0.9], shift=1) == pytest.approx([1 / (1 + np.exp(-1))])
    steep = gates(task, domain, kappa=99)
    assert steep.min() == pytest.approx(0.1) and steep.max() == pytest.approx(0.9)
    assert gates([0, 0.2], [0.2, 0.2]) == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], abs=1e-6)
    assert ratio_gates([0.2, 0.0], [0.6, 0.0]) == pytest.approx([0.75, 0.5])
    assert ramp_gates([0, 1, 4], 5) == pytest.approx([0.1, 0.3, 0.9]) and ramp_gates([0], 1) == pytest.approx([0.5])
    for wrong in (([0.1], [0.1, 0.2]), ([], []), ([-0.1], [0.1]), ([np.nan], [0.1])):
        with pytest.raises(ExportError, match="gates: got"):
            gates(*wrong)


def test_rank_correlation() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    values = np.array([0.3, 0.1, 0.3, 0.9, 0.2, 0.8, 0.8])
    assert spearman(values) == pytest.approx(scipy_stats.spearmanr(range(7), values).statistic)
    assert spearman([1, 1, 1]) is None and spearman([1]) is None and spearman([1, 2, 5]) == pytest.approx(1)


def test_identical_adapters_stay() -> None:
    pair = random_pair(0)
    b, a, info = merge(pair, pair, 0.5)
    assert (
        np.diag(info["cosines"]) == pytest.approx(np.ones(4)) and info["kept_task"].all() and info["kept_domain"].all()
    )
    assert b @ a == pytest.approx(pair[0] @ pair[1], abs=1e-10)


def test_opposite_adapters_leave_the_task() -> None:
    b, a = random_pair(0)
    merged_b, merged_a, info = merge((b, a), (-b, a), 0.5)
    assert flags(info["kept_task"]) + flags(info["kept_domain"]) == "11110000"
    assert merged_b @ merged_a == pytest.approx(0.5 * b @ a, abs=1e-10)


def test_a_domain_of_zero_and_unrelated_adapters() -> None:
    task, other = random_pair(0), random_pair(1)
    b, a, _ = merge(task, (0 * other[0], other[1]), 0.3)
    assert b @ a == pytest.approx(0.7 * task[0] @ task[1], abs=1e-10)
    apart = np.zeros((2, 20, 2))
    apart[0, :2], apart[1, 2:4] = np.eye(2), np.eye(2)
    _, _, info = merge((apart[0], task[1][:2]), (apart[1], task[1][:2]), 0.5, theta=1e-6)  # orthogonal columns
    assert info["kept_task"].all() and info["kept_domain"].all()


def test_factors_give_what_the_dense_decomposition_gives() -> None:
    task, domain = random_pair(0), random_pair(1, rank=3)
    domain[0][:, 0] -= 4 * task[0][:, 0]
    domain[1][0] += task[1][0]
    b, a, info = merge(task, domain, 0.4, theta=0.1, scale=2.0)
    sides = [np.linalg.svd(pair[0] @ pair[1], full_matrices=False) for pair in (task, domain)]
    dropped, total = 0, np.zeros((20, 30))
    cosines = (sides[0][0].T @ sides[1][0]) * (sides[0][2] @ sides[1][2].T)
    for number, (share, (u, s, v), count) in enumerate(zip((0.6, 0.4), sides, (4, 3), strict=True)):
        for i in range(count):
            rivals = (cosines[i, :3], sides[1][1], 0.4) if number == 0 else (cosines[:4, i], sides[0][1], 0.6)
            loses = any(
                c < -0.1
                and (share * s[i] < rivals[2] * rivals[1][j] or (number and share * s[i] == rivals[2] * rivals[1][j]))
                for j, c in enumerate(rivals[0])
            )
            dropped += loses
            if not loses:
                total += 2.0 * share * s[i] * np.outer(u[:, i], v[i])
    assert 0 < dropped == (~info["kept_task"]).sum() + (~info["kept_domain"]).sum()
    u, s, v = np.linalg.svd(total)
    assert b @ a == pytest.approx((u[:, :4] * s[:4]) @ v[:4], abs=1e-10)
    assert np.linalg.norm(b @ a - total) == pytest.approx(info["tail"], abs=1e-10)


def test_a_planted_conflict() -> None:
    """Of two unrelated adapters, one of whose components is the opposite of the other's, one pair conflicts."""
    task, other = random_pair(0, 1024, 16, 1024), random_pair(2, 1024, 16, 1024)
    own, theirs = decompose(*task), decompose(*other)
    left = np.column_stack([theirs.left[:, :15] * theirs.strengths[:15], -0.8 * own.strengths[0] * own.left[:, 0]])
    domain = left, np.column_stack([theirs.right[:, :15], own.right[:, 0]]).T
    info = merge(task, domain, 0.5)[2]
    conflicts = np.argwhere(info["cosines"] < -0.2)
    assert len(conflicts) == 1 and conflicts[0, 0] == 0
    assert info["cosines"].min() == pytest.approx(-0.44, abs=0.08)  # the domain's components mix with it
    assert (~info["kept_task"]).sum() + (~info["kept_domain"]).sum() == 1


def test_ranks_and_padding() -> None:
    b, a, info = merge(random_pair(0, rank=2), random_pair(1, rank=5), 0.5)
    assert b.shape == (20, 5) and a.shape == (5, 30) and len(info["kept_task"]) == 2
    b, a, _ = merge(random_pair(0, rank=2), random_pair(1, rank=5), 0.5, rank=9)
    assert b.shape == (20, 9) and not b[:, 7:].any() and not a[7:].any()
    b, a, info = merge(random_pair(0, 3, 5, 7), random_pair(1, 3, 5, 7), 0.5, theta=2)
    assert b.shape == (3, 5) and len(info["kept_task"]) == 3 and info["tail"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("domain", "gate", "theta", "message"),
    [
        (random_pair(0, 21), 0.5, 0.2, r"change of \[21, 30\], expected \[20, 30\]"),
        (random_pair(0), 1.5, 0.2, "a gate of 1.5"),
        (random_pair(0), float("nan"), 0.2, "a gate of nan"),
        (random_pair(0), 0.5, -0.1, "theta -0.1"),
        ((random_pair(0)[0] * np.inf, random_pair(0)[1]), 0.5, 0.2, "NaN or infinity"),
    ],
)
def test_wrong_arguments(domain: Pair, gate: float, theta: float, message: str) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ExportError, match=message):
        merge(random_pair(0), domain, gate, theta)
