"""Tests of a request's options over the model's own defaults: what is given wins, and what is not is the model's."""

from __future__ import annotations

from typing import Any

import pytest

from enginewright.runtime.artifact.generation_defaults import GenerationDefaults
from enginewright.runtime.artifact.strict_json import parse
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling, default_limit, resolve
from enginewright.runtime.requests.sampling import Sampling

MODEL = GenerationDefaults(
    temperature=0.6,
    top_k=20,
    top_p=0.9,
    min_p=0.1,
    typical_p=0.8,
    epsilon_cutoff=0.01,
    eta_cutoff=0.02,
    repetition_penalty=1.1,
    max_tokens=7,
    stop=("END",),
    logits_processors={"no_repeat_ngram": {"size": 2}, "suppress_tokens": {"tokens": [3]}},
)
NEUTRAL = GenerationDefaults()


def test_without_a_model_of_its_own_mind_a_request_is_plain_greedy() -> None:
    assert resolve(Sampling(), NEUTRAL) == ResolvedSampling()
    assert (
        ResolvedSampling().is_plain_greedy and not ResolvedSampling().changes_logits and not ResolvedSampling().cutoffs
    )


def test_the_models_defaults_act_where_nothing_is_given() -> None:
    found = resolve(Sampling(seed=3), MODEL)
    assert (found.temperature, found.top_k, found.top_p, found.min_p) == (0.6, 20, 0.9, 0.1)
    assert (found.repetition_penalty, found.stop, found.seed, found.max_tokens) == (1.1, ("END",), 3, None)
    assert found.cutoffs == (("typical_p", 0.8), ("epsilon_cutoff", 0.01), ("eta_cutoff", 0.02))
    assert found.logits_processors == MODEL.logits_processors
    assert found.beyond_greedy == ("temperature", "repetition_penalty", "logits_processors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("top_k", 0),
        ("top_p", 1.0),
        ("min_p", 0),
        ("typical_p", 1),
        ("epsilon_cutoff", 0),
        ("eta_cutoff", 0),
        ("repetition_penalty", 1),
        ("stop", ()),
        ("stop", ("x",)),
    ],
)
def test_a_given_value_wins(name: str, value: Any) -> None:
    assert getattr(resolve(Sampling(**{name: value}), MODEL), name) == value


def test_processors_come_on_top_of_the_models_and_replace_or_switch_off_those_of_the_same_name() -> None:
    given = {"no_repeat_ngram": {"size": 5}, "suppress_tokens": None, "mine": print}
    found = resolve(Sampling(logits_processors=given), MODEL)  # type: ignore[arg-type] # any callable will do
    assert found.logits_processors == {"no_repeat_ngram": {"size": 5}, "mine": print}


def test_a_request_may_leave_the_models_defaults_aside() -> None:
    found = resolve(Sampling(model_defaults=False, top_k=3), MODEL)
    assert found == ResolvedSampling(model_defaults=False, top_k=3) and found.is_plain_greedy


@pytest.mark.parametrize(
    ("sampling", "defaults", "limit"),
    [
        (Sampling(), NEUTRAL, 90),
        (Sampling(), GenerationDefaults(max_tokens=7), 7),
        (Sampling(), GenerationDefaults(max_tokens=700), 90),
        (Sampling(), GenerationDefaults(max_length=12), 2),
        (Sampling(), GenerationDefaults(max_length=12, max_tokens=5), 5),
        (Sampling(max_tokens=90), GenerationDefaults(max_length=12, max_tokens=5), 90),
        (Sampling(model_defaults=False), GenerationDefaults(max_length=12, max_tokens=5), 90),
    ],
)
def test_the_longest_answer(sampling: Sampling, defaults: GenerationDefaults, limit: int) -> None:
    assert default_limit(resolve(sampling, defaults), defaults, prompt=10, limit=90) == limit


def test_a_prompt_that_fills_the_models_longest_text_is_refused() -> None:
    with pytest.raises(RequestError, match=r"got 12 tokens.*ends a text at 12.*pass Sampling.max_tokens"):
        default_limit(ResolvedSampling(), GenerationDefaults(max_length=12), prompt=12, limit=90)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_k", -1, "manifest.generation.top_k: got -1, expected a whole number from 0"),
        ("top_p", 0.0, "manifest.generation.top_p: got 0.0, expected a number above 0"),
        ("max_length", 0, "manifest.generation.max_length: got 0"),
        ("stop", [""], "manifest.generation.stop: got an empty string"),
        ("temperature", "hot", "manifest.generation.temperature: got 'hot'"),
        ("beams", 2, "unknown key 'beams'"),
    ],
)
def test_defaults_in_a_manifest_are_checked(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(GenerationDefaults, {name: value}, "manifest.generation")
