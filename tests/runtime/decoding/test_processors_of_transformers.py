"""Tests of logits processors and cutoffs against transformers' own, alone and together, from the settings to the logits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessorList
from transformers.generation import logits_process as theirs

from enginewright.exporters.source.generation.generation_settings import Settings
from enginewright.exporters.source.generation.processors import read_processors
from enginewright.exporters.source.unused import Unused
from enginewright.runtime.decoding.cutoffs import CUTOFFS
from enginewright.runtime.decoding.processor_kind import open_processors
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling

VOCAB = 13
ENDS = [2, 5]
EXACT = 1e-6  # float32 products and sums in another order
token = st.integers(0, VOCAB - 1)
word = st.lists(token, min_size=1, max_size=3)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "repetition_penalty": st.floats(0.5, 2.0, width=32),
    "suppress_tokens": st.lists(token, min_size=1, max_size=4),
    "begin_suppress_tokens": st.lists(token, min_size=1, max_size=4),
    "bad_words_ids": st.lists(word, min_size=1, max_size=4).filter(
        lambda words: not all(w in ([2], [5]) for w in words)
    ),
    "no_repeat_ngram_size": st.integers(0, 4),
    "min_new_tokens": st.integers(0, 6),
    "min_length": st.integers(0, 12),
    "sequence_bias": st.lists(st.tuples(word, st.floats(-9, 9, width=32)).map(list), min_size=1, max_size=4),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 5), st.floats(0.5, 2.0, width=32)).map(list),
}
CASES: list[tuple[dict[str, Any], list[int]]] = [  # each with a prompt of 3 tokens and output after it
    ({"repetition_penalty": 1.3}, [4, 2]),
    ({"suppress_tokens": [1, 12, 0]}, [4]),
    ({"begin_suppress_tokens": [3, 2]}, []),
    ({"begin_suppress_tokens": [3, 2]}, [7]),
    ({"bad_words_ids": [[1], [7, 8], [2], [4, 7, 9]]}, [4, 7]),
    ({"no_repeat_ngram_size": 1}, [4, 7]),
    ({"no_repeat_ngram_size": 2}, [9, 1, 9]),
    ({"no_repeat_ngram_size": 9}, [9, 1]),
    ({"min_new_tokens": 2}, [4]),
    ({"min_new_tokens": 2}, [4, 4]),
    ({"min_length": 5}, [4]),
    ({"min_length": 5}, [4, 4]),
    ({"min_length": 9, "min_new_tokens": 1}, [4]),
    ({"sequence_bias": [[[4], 2.5], [[7, 4], -3.0], [[1, 7, 4], 1.0], [[4], 4.5]]}, [1, 7]),
    ({"sequence_bias": [[[4, 2], 1.5], [[2], 0.1], [[7, 4, 2], -0.7], [[9, 2], 5.0]]}, [7, 4]),
    ({"bad_words_ids": [[7, 4, 2], [4, 2], [4, 3], [9, 4, 5], [4]]}, [7, 4]),
    ({"exponential_decay_length_penalty": [1, 1.5]}, [4]),
    ({"exponential_decay_length_penalty": [1, 1.5]}, [4, 4, 4]),
    ({"exponential_decay_length_penalty": [1, 1.5], "min_new_tokens": 9}, [4, 4, 4]),
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A model for its methods, not for its numbers."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes))


def expected_logits(model: LlamaForCausalLM, values: dict[str, Any], tokens: list[int], prompt: int, row: Any) -> Any:
    """What transformers makes of `row` after `tokens`."""
    config = GenerationConfig(**values, max_length=100)
    config._eos_token_tensor = torch.tensor(ENDS)
    config = model._prepare_generated_length(config, False, False, "input_ids", prompt, None)
    processors = model._get_logits_processor(config, input_ids_seq_length=prompt)
    return processors(torch.tensor([tokens]), torch.from_numpy(row[None].copy()))[0].numpy()


def our_logits(values: dict[str, Any], tokens: list[int], prompt: int, row: Any) -> Any:
    """What the processors that the settings give make of `row` after `tokens`."""
    read = Settings(file="generation_config.json", values=values, vocab=VOCAB, unused=Unused())
    sampling = ResolvedSampling(
        repetition_penalty=values.get("repetition_penalty", 1.0), logits_processors=read_processors(read, tuple(ENDS))
    )
    result = row.copy()
    for processor in open_processors(sampling, np.array(tokens[:prompt]), VOCAB):
        processor.process(result, np.array(tokens))
    return result


@pytest.mark.parametrize(("values", "output"), CASES)
def test_a_setting_acts_as_in_transformers(values: dict[str, Any], output: list[int], model: LlamaForCausalLM) -> None:
    row = np.random.default_rng(0).normal(0, 3, VOCAB).astype(np.float32)
    tokens = [7, 9, 1, *output]
    expected = expected_logits(model, values, tokens, 3, row)
    np.testing.assert_allclose(our_logits(values, tokens, 3, row), expected, rtol=EXACT, atol=EXACT)


@settings(max_examples=200, deadline=None)
@given(
    values=st.fixed_dictionaries({}, optional=SETTINGS),
    tokens=st.lists(token, min_size=1, max_size=14),
    prompt=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_settings_act_together_as_in_transformers(
    values: dict[str, Any], tokens: list[int], prompt: int, seed: int, model: LlamaForCausalLM
) -> None:
    prompt = min(prompt, len(tokens))
    row = np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)
    expected = expected_logits(model, values, tokens, prompt, row)
    np.testing.assert_allclose(our_logits(values, tokens, prompt, row), expected, rtol=1e-5, atol=1e-5)


WARPERS = {
    "typical_p": lambda value: theirs.TypicalLogitsWarper(mass=value),
    "epsilon_cutoff": lambda value: theirs.EpsilonLogitsWarper(epsilon=value),
    "eta_cutoff": lambda value: theirs.EtaLogitsWarper(epsilon=value),
}


@pytest.mark.parametrize("name", WARPERS)
@pytest.mark.parametrize("value", [3e-4, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("vocab", [1, 2, 101, 4096])
def test_a_cutoff_keeps_what_transformers_keeps(name: str, value: float, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    for scale in (0.1, 1.0, 6.0):
        row = rng.normal(0, scale, vocab).astype(np.float32)
        row[rng.integers(0, vocab, vocab // 3)] = -np.inf  # as top_k leaves them
        row[rng.integers(vocab)] = 0.0
        kept = torch.isfinite(
            LogitsProcessorList([WARPERS[name](value)])(torch.zeros(1, 0), torch.from_numpy(row[None]))
        )
        weights = np.exp(row - row.max())
        ours = CUTOFFS[name](weights, value) & (weights > 0)
        assert np.flatnonzero(ours).tolist() == np.flatnonzero(kept[0].numpy()).tolist()


def test_growth_without_end_stays_finite() -> None:
    options = {"end_growth": {"start": 0, "factor": 10.0, "end_tokens": [2]}}
    (processor,) = open_processors(ResolvedSampling(logits_processors=options), np.array([1]), VOCAB)
    row = np.full(VOCAB, 3.0, np.float32)
    processor.process(row, np.ones(5000, np.int64))
    assert np.isfinite(row).all() and row.argmax() == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("suppress_tokens", {"tokens": [VOCAB]}, f"got token id {VOCAB}, expected ids from 0 to {VOCAB - 1}"),
        ("suppress_tokens", {}, "key 'tokens' is missing"),
        ("suppress_tokens", {"tokens": json.loads("[" * 900 + "]" * 900)}, "nested too deeply; pass flatter ones"),
        ("begin_suppress_tokens", {"tokens": [-1]}, "got token id -1"),
        ("no_repeat_ngram", {"size": 0}, "size: got 0, expected a whole number from 1 up"),
        ("no_repeat_ngram", {"size": 2.5}, "size: got 2.5, expected int"),
        ("no_repeat_ngram", {"n": 2}, "unknown key 'n'; known: size"),
        ("bad_words", {"words": [[1], []]}, "words: got a word without tokens"),
        ("bad_words", {"words": [[1, 99]]}, "got token id 99"),
        ("bad_words", {"words": [[1, 2]] * 16_385}, "words: got 16385 sequences of two tokens or more, expected 16384"),
        ("sequence_bias", {"sequences": [{"tokens": [1, 2], "bias": 1.0}] * 16_385}, "sequences: got 16385 sequences"),
        ("sequence_bias", {"sequences": [{"tokens": [], "bias": 1.0}]}, "tokens: got none"),
        ("sequence_bias", {"sequences": [{"tokens": [99], "bias": 1.0}]}, "got token id 99"),
        ("min_tokens", {"count": -1, "end_tokens": [2]}, "count: got -1"),
        ("min_tokens", {"count": 1, "end_tokens": [99]}, "got token id 99"),
        ("end_growth", {"start": 1, "factor": 0.0, "end_tokens": [2]}, "factor: got 0.0"),
        ("end_growth", {"start": 1, "factor": 2.0, "end_tokens": [99]}, "got token id 99"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_processors(ResolvedSampling(logits_processors={name: options}), np.array([1]), VOCAB)
