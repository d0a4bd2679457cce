"""Tests of every way to choose a token, against a plain reference that sorts the whole vocabulary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.decoding.processor_kind import open_processors
from enginewright.runtime.decoding.sampler import _kth_largest, _mass_cut, _pick, choose_tokens
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.random_stream import Draws
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling
from enginewright.runtime.requests.sampling import Sampling


@dataclass
class Row:
    """The part of a request that the sampler reads."""

    sampling: ResolvedSampling
    prompt: list[int] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.is_plain_greedy = self.sampling.is_plain_greedy
        self.draws = Draws(self.sampling.seed or 0)
        self.tokens = np.array([*self.prompt, *self.generated], np.int64)
        self.length = len(self.tokens)
        self.processors = open_processors(self.sampling, np.array(self.prompt, np.int64), 0)
        self.processor_error: Exception | None = None


def reference_probabilities(logits: np.ndarray, row: Row) -> np.ndarray:
    """The distribution over the vocabulary, in float64 and with full sorts."""
    s, x = row.sampling, logits.astype(np.float64)
    for token, bias in s.logit_bias.items():
        x[token] += bias
    for token in set(row.prompt) | set(row.generated):
        x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
    for token, count in Counter(row.generated).items():
        x[token] -= s.presence_penalty + s.frequency_penalty * count
    if s.temperature == 0:
        return (np.arange(len(x)) == x.argmax()).astype(np.float64)
    x = x / s.temperature
    if s.top_k and s.top_k < len(x):
        x[x < np.sort(x)[-s.top_k]] = -np.inf
    p = _softmax(x)
    if s.top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        x[order[before >= s.top_p]] = -np.inf
        p = _softmax(x)
    if s.min_p:
        x[p < s.min_p * p.max()] = -np.inf
    return _softmax(x)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def _outputs(logits: np.ndarray) -> Outputs:
    return Outputs(logits.copy(), logits.argmax(axis=1))


def _choose_one(logits: np.ndarray, row: Row) -> int:
    return int(choose_tokens(_outputs(logits[None]), [row])[0][0])


CASES = [
    ResolvedSampling(temperature=1.0),
    ResolvedSampling(temperature=0.3),
    ResolvedSampling(temperature=1.5, top_k=7),
    ResolvedSampling(temperature=1.0, top_k=1),
    ResolvedSampling(temperature=1.0, top_k=10_000),
    ResolvedSampling(temperature=0.8, top_p=0.9),
    ResolvedSampling(temperature=1.0, top_p=0.01),
    ResolvedSampling(temperature=2.0, top_p=0.999),
    ResolvedSampling(temperature=1e-30),
    ResolvedSampling(temperature=1.0, min_p=0.2),
    ResolvedSampling(temperature=1.0, min_p=1.0),
    ResolvedSampling(temperature=0.9, top_k=50, top_p=0.7, min_p=0.05),
    ResolvedSampling(temperature=0.9, top_p=0.95, min_p=0.02),
    ResolvedSampling(temperature=1.0, repetition_penalty=1.7, presence_penalty=0.4, frequency_penalty=0.3),
    ResolvedSampling(temperature=1.0, logit_bias={3: 4.0, 9: -100.0}, top_k=5),
    ResolvedSampling(repetition_penalty=3.0),
    ResolvedSampling(presence_penalty=50.0),
    ResolvedSampling(logit_bias={11: 30.0}),
]


@pytest.mark.parametrize("vocab", [13, 64, 1000, 4133])
@pytest.mark.parametrize("sampling", CASES, ids=repr)
def test_draws_follow_the_reference(sampling: ResolvedSampling, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = (rng.standard_normal(vocab) * 3).astype(np.float32)
    output = rng.integers(0, vocab, 9).tolist()
    row = Row(sampling, prompt=[1, 1, *rng.integers(0, vocab, 5).tolist()], generated=[output[0], *output])
    p = reference_probabilities(logits, row)
    edges = np.cumsum(np.sort(p)[::-1])
    drawn = Counter()
    for seed in range(300):
        row.draws = Draws(seed)
        drawn[_choose_one(logits, row)] += 1
    assert all(p[token] > 0 for token in drawn), "a token that the truncations drop"
    common = [token for token in np.argsort(-p)[:5] if p[token] > 0.05]
    for token in common:  # five standard deviations of a binomial
        assert abs(drawn[token] - 300 * p[token]) < 5 * np.sqrt(300 * p[token] * (1 - p[token])) + 1
    assert edges[-1] == pytest.approx(1)


@given(st.integers(1, 5000), st.integers(0, 2**32), st.floats(0.001, 0.999), st.sampled_from([0.0, 0.01, 1.0, 12.0]))
@settings(max_examples=150, deadline=None)
def test_the_mass_cut_is_where_sorting_finds_it(vocab: int, seed: int, share: float, spread: float) -> None:
    logits = np.random.default_rng(seed).standard_normal(vocab) * spread
    weights = np.exp(logits - logits.max()).astype(np.float32)
    kept = np.sort(weights[weights >= np.float32(_mass_cut(weights, share))].astype(np.float64))
    total = weights.sum(dtype=np.float64)
    assert kept.sum() >= (share - 1e-5) * total
    assert kept[kept > kept[0]].sum() < (share + 1e-5) * total, "the smallest of the kept was not needed"


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    """Also where a block's sum in single precision is above that in double, and the draw lies between the two."""
    found = 0
    for seed in range(400):
        weights = np.random.default_rng(seed).random(64).astype(np.float32)
        weights[50:] = 0
        single, double = float(np.add.reduceat(weights, [0])[0]), float(np.cumsum(weights, dtype=np.float64)[-1])
        if single > double:
            found += 1
            assert weights[_pick(weights, np.nextafter(double / single, 1.0))] > 0
    assert found > 50, "the case occurs"


@given(st.integers(1, 3000), st.integers(1, 3100), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_kth_largest_is_where_sorting_finds_it(vocab: int, k: int, seed: int) -> None:
    row = np.random.default_rng(seed).integers(0, 999, vocab).astype(np.float32)
    assert _kth_largest(row, k) == (np.sort(row)[-k] if k < vocab else -np.inf)


def test_equal_logits_are_kept_together_at_the_edge_of_top_k() -> None:
    logits = np.array([1, 1, 1, 0], np.float32)
    drawn = {_choose_one(logits, Row(ResolvedSampling(temperature=1.0, top_k=2, seed=seed))) for seed in range(100)}
    assert drawn == {0, 1, 2}


def test_draw_numbers_depend_on_seed_and_index_alone() -> None:
    forward, backward = Draws(5), Draws(5)
    numbers = [forward[i] for i in range(200)]
    assert [backward[i] for i in reversed(range(200))] == numbers[::-1]
    assert numbers == np.random.Generator(np.random.Philox(key=5)).random(200).tolist()
    assert len({Draws(seed)[0] for seed in range(100)}) == 100


@pytest.mark.parametrize("sampling", CASES[:8], ids=repr)
def test_a_row_does_not_depend_on_its_batch(sampling: ResolvedSampling) -> None:
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal((6, 500)) * 2).astype(np.float32)
    rows = [Row(CASES[i], generated=[2, 3]) for i in range(5)] + [Row(sampling, generated=[4])]
    assert choose_tokens(_outputs(logits), rows)[0][5] == _choose_one(logits[5], rows[5])


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = (np.random.default_rng(3).standard_normal(1000) * 2).astype(np.float32)
    expected = np.log(_softmax(logits.astype(np.float64)))
    row = Row(
        ResolvedSampling(temperature=0.5, top_k=3, repetition_penalty=2.0, logprobs=4), prompt=[int(logits.argmax())]
    )
    (token,), (logprobs,) = choose_tokens(_outputs(logits[None]), [row])
    assert logprobs is not None
    assert logprobs.chosen == pytest.approx(expected[token], abs=1e-5)
    assert [token for token, _ in logprobs.top] == np.argsort(-expected)[:4].tolist()
    np.testing.assert_allclose([value for _, value in logprobs.top], np.sort(expected)[::-1][:4], atol=1e-5)
    (only,) = choose_tokens(_outputs(logits[None]), [Row(ResolvedSampling(logprobs=0))])[1]
    assert only is not None and only.top == () and only.chosen == pytest.approx(expected.max(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("inf")),
        ("frequency_penalty", None),
        ("seed", -1),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop", 3),
        ("stop", ["x"] * 1025),
        ("stop", "x" * 16_385),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", 3),
        ("logit_bias", [1]),
        ("logit_bias", {1: 10**400}),
        ("temperature", 10**400),
        ("temperature", 1e300),
        ("presence_penalty", -(10**400)),
        ("logprobs", -1),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: float("nan")}),
    ],
)
def test_a_bad_field_is_named(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=rf"Sampling\.{name}"):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    "name", [each.name for each in fields(Sampling) if each.name not in ("ignore_eos", "model_defaults")]
)
def test_a_number_of_thousands_of_digits_is_named(name: str) -> None:
    """Python does not write it out."""
    for value in (10**5000, (10**5000,), {10**5000: 0.0}):
        with pytest.raises(RequestError, match=rf"Sampling\.{name}"):
            Sampling(**{name: value})


def test_one_stop_string_may_be_given_as_such() -> None:
    assert Sampling(stop="END").stop == ("END",)
