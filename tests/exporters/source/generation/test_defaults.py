"""Tests of a checkpoint's generation settings: what an engine takes over, refuses, and names as not used."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

from enginewright.exporters.source.generation.defaults import read_defaults
from enginewright.exporters.source.generation.generation_settings import open_settings
from enginewright.exporters.source.generation.keys import UNUSED, WITHOUT_EFFECT
from enginewright.exporters.source.generation.processors import LOGITS_SETTINGS
from enginewright.exporters.source.unused import Unused
from enginewright.runtime.artifact.generation_defaults import GenerationDefaults
from enginewright.runtime.errors import ExportError

VOCAB, ENDS = 100, (2, 7)


@dataclass
class Files:
    """The part of a checkpoint that is read."""

    generation: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    has_generation: bool = True
    path = Path("model")
    unused: Unused = field(default_factory=Unused)
    config = SimpleNamespace(vocab_size=VOCAB)

    def file_names(self) -> tuple[str, ...]:
        """The files that there are."""
        return ("config.json", "generation_config.json") if self.has_generation else ("config.json",)

    def read_file(self, name: str) -> bytes:
        """The content of config.json."""
        return json.dumps(self.model).encode()


def read(files: Files, *, has_tokenizer: bool = True) -> GenerationDefaults:
    """The defaults that the files give."""
    return read_defaults(files, ENDS, has_tokenizer=has_tokenizer)  # type: ignore[arg-type] # the part that is read


def named(files: Files) -> dict[str, str]:
    """What is not used, with the reasons."""
    return {name: part.reason for part in files.unused.parts for name in part.names}


TAKEN: list[tuple[dict[str, Any], GenerationDefaults]] = [
    ({}, GenerationDefaults()),
    ({"temperature": 0.6, "do_sample": False}, GenerationDefaults()),
    ({"top_k": 20, "top_p": 0.8}, GenerationDefaults(top_k=20, top_p=0.8)),
    ({"do_sample": True}, GenerationDefaults(temperature=1.0, top_k=50)),
    ({"do_sample": True, "top_k": 0, "temperature": 0.6}, GenerationDefaults(temperature=0.6)),
    ({"do_sample": True, "top_k": 5, "min_p": 0.1}, GenerationDefaults(temperature=1.0, top_k=5, min_p=0.1)),
    ({"top_p": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0, "min_p": 0.0}, GenerationDefaults()),
    (
        {"typical_p": 0.5, "epsilon_cutoff": 0.1, "eta_cutoff": 0.2},
        GenerationDefaults(typical_p=0.5, epsilon_cutoff=0.1, eta_cutoff=0.2),
    ),
    ({"repetition_penalty": 1.05}, GenerationDefaults(repetition_penalty=1.05)),
    ({"repetition_penalty": 1.0}, GenerationDefaults()),
    ({"max_new_tokens": 9, "max_length": 20}, GenerationDefaults(max_tokens=9, max_length=20)),
    ({"stop_strings": "END"}, GenerationDefaults(stop=("END",))),
    ({"stop_strings": ["a", "b"]}, GenerationDefaults(stop=("a", "b"))),
]
PROCESSORS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"suppress_tokens": [3, 1]}, {"suppress_tokens": {"tokens": [3, 1]}}),
    ({"begin_suppress_tokens": [3]}, {"begin_suppress_tokens": {"tokens": [3]}}),
    ({"suppress_tokens": [], "no_repeat_ngram_size": 0, "min_length": 0}, {}),
    ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram": {"size": 3}}),
    ({"bad_words_ids": [[2], [3, 2], [7]]}, {"bad_words": {"words": [[3, 2]]}}),
    ({"min_length": 5}, {"min_tokens": {"count": 5, "end_tokens": [2, 7], "of_prompt": True}}),
    ({"min_length": 5, "min_new_tokens": 3}, {"min_tokens": {"count": 3, "end_tokens": [2, 7], "of_prompt": False}}),
    ({"min_length": 5, "min_new_tokens": 0}, {}),
    (
        {"sequence_bias": [[[1, 2], 3], [[1, 2], 4.0]]},
        {"sequence_bias": {"sequences": [{"tokens": [1, 2], "bias": 4.0}]}},
    ),
    (
        {"exponential_decay_length_penalty": [4, 1.5]},
        {"end_growth": {"start": 4, "factor": 1.5, "end_tokens": [2, 7]}},
    ),
]


@pytest.mark.parametrize(("settings", "expected"), TAKEN)
def test_what_is_taken_over(settings: dict[str, Any], expected: GenerationDefaults) -> None:
    files = Files(settings)
    assert read(files) == expected and not named(files)


@pytest.mark.parametrize(("settings", "expected"), PROCESSORS)
def test_what_becomes_a_processor(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    files = Files(settings)
    assert read(files).logits_processors == expected and not named(files)


@pytest.mark.parametrize("key", UNUSED)
def test_what_is_not_used_is_named(key: str) -> None:
    files = Files({key: 3})
    assert read(files) == GenerationDefaults() and named(files) == {key: UNUSED[key][1]}


@pytest.mark.parametrize("key", UNUSED)
def test_what_has_no_effect_is_not_named(key: str) -> None:
    for neutral in UNUSED[key][0]:
        files = Files({key: neutral})
        assert read(files) == GenerationDefaults() and not named(files)


def test_every_setting_of_transformers_is_known() -> None:
    others = {"do_sample", "max_new_tokens", "max_length", "stop_strings", "temperature", "repetition_penalty"}
    rules = {"top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
    missing = GenerationConfig().to_dict().keys() - {*UNUSED, *WITHOUT_EFFECT, *LOGITS_SETTINGS, *others, *rules}
    assert not missing


def test_the_defaults_of_transformers_change_nothing() -> None:
    settings = GenerationConfig._get_default_generation_params() | {"max_length": None, "top_k": None}
    files = Files(settings)
    assert read(files) == GenerationDefaults() and not named(files)


def test_an_unknown_setting_is_named() -> None:
    files = Files({"chat_format": "chatml"})
    read(files)
    assert list(named(files)) == ["chat_format"]


def test_tokens_outside_the_vocabulary_are_named() -> None:
    files = Files({"suppress_tokens": [-1, 3, VOCAB]})
    assert read(files).logits_processors == {"suppress_tokens": {"tokens": [3]}}
    assert named(files) == {"suppress_tokens": "2 of its token ids, outside the vocabulary of 100; the others are"}


def test_stop_strings_without_a_tokenizer_are_named() -> None:
    files = Files({"stop_strings": ["END"]})
    assert read(files, has_tokenizer=False) == GenerationDefaults() and list(named(files)) == ["stop_strings"]


def test_a_rule_out_of_range_is_named_where_it_does_not_act() -> None:
    files = Files({"top_k": -1, "top_p": 0.0})
    assert read(files) == GenerationDefaults() and set(named(files)) == {"top_k", "top_p"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "temperature": 0.0}, r"temperature: got 0.0, expected a number above 0"),
        ({"do_sample": True, "temperature": "1"}, r"temperature: got '1'"),
        ({"do_sample": True, "top_k": -1}, r"top_k: got -1, expected a whole number"),
        ({"do_sample": "yes"}, r"do_sample: got 'yes', expected true or false"),
        ({"repetition_penalty": 0}, r"repetition_penalty: got 0, expected a number above 0"),
        ({"suppress_tokens": 3}, r"suppress_tokens: got 3, expected a list of token ids"),
        ({"begin_suppress_tokens": [True]}, r"begin_suppress_tokens: got \[True\]"),
        ({"bad_words_ids": [[]]}, r"bad_words_ids: got \[\[\]\], expected a list of lists of token ids below 100"),
        ({"bad_words_ids": [[100]]}, r"bad_words_ids: got \[\[100\]\]"),
        ({"sequence_bias": {"(1,)": 2.0}}, r"sequence_bias: got .*, expected a list of pairs"),
        ({"sequence_bias": [[[1], "x"]]}, r"sequence_bias: got"),
        ({"no_repeat_ngram_size": 1.5}, r"no_repeat_ngram_size: got 1.5, expected a whole number from 0 up"),
        ({"max_new_tokens": 0}, r"max_new_tokens: got 0, expected a whole number from 1 up"),
        ({"max_length": "9"}, r"max_length: got '9'"),
        ({"stop_strings": [1]}, r"stop_strings: got \[1\]"),
        ({"exponential_decay_length_penalty": [1]}, r"exponential_decay_length_penalty: got \[1\]"),
        (
            {"exponential_decay_length_penalty": [1, -1.0]},
            r"exponential_decay_length_penalty: got .*, expected a factor above 0",
        ),
    ],
)
def test_a_setting_that_acts_and_is_wrong_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=f"generation_config.json: {message}"):
        read(Files(settings))


@pytest.mark.parametrize(
    "model",
    [
        {"repetition_penalty": 1.2, "vocab_size": 9, "rope_theta": 1.0, "suppress_tokens": None},
        {"repetition_penalty": 1.2, "text_config": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}},
        {"decoder": {"bad_words_ids": [[3]]}, "do_sample": True},
    ],
)
def test_settings_in_an_old_config_are_those_that_transformers_reads(model: dict[str, Any]) -> None:
    settings = open_settings(Files(model=model, has_generation=False))  # type: ignore[arg-type] # the part that is read
    expected = GenerationConfig.from_model_config(dict(model)).to_dict()
    assert settings.file == "config.json"
    of_file = {"transformers_version", "_from_model_config"}
    assert settings.values == {
        key: value for key, value in expected.items() if value is not None and key not in of_file
    }
