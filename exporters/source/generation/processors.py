"""Turns the generation settings that change logits into logits processors with their options, as the runtime names them."""

from __future__ import annotations

from typing import Any

from enginewright.exporters.source.generation.generation_settings import Settings
from enginewright.runtime.artifact.sampling_ranges import is_number

LOGITS_SETTINGS = (
    "sequence_bias",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
)


def read_processors(settings: Settings, end_tokens: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Return the names of processors with their options; those that change nothing are left out.

    end_tokens: ids of the tokens that end a text.
    """
    ends = [token for token in end_tokens if token < settings.vocab]
    size = settings.count("no_repeat_ngram_size", 0)
    found = {
        "sequence_bias": _options("sequences", _biased_sequences(settings)),
        "no_repeat_ngram": {"size": size} if size else {},
        "bad_words": _options("words", _bad_words(settings, ends)),
        "min_tokens": _min_tokens(settings, ends),
        "end_growth": _end_growth(settings, ends),
        "suppress_tokens": _options("tokens", list(settings.tokens("suppress_tokens"))),
        "begin_suppress_tokens": _options("tokens", list(settings.tokens("begin_suppress_tokens"))),
    }
    return {name: options for name, options in found.items() if options}


def _options(name: str, values: list[Any]) -> dict[str, Any]:
    return {name: values} if values else {}


def _biased_sequences(settings: Settings) -> list[dict[str, Any]]:
    """The sequences with their biases; of one that comes twice, the last counts."""
    biases: dict[tuple[int, ...], float] = {}
    pairs = settings.values.get("sequence_bias", [])
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not (
            isinstance(pair, list) and len(pair) == 2 and settings.is_sequence(pair[0]) and is_number(pair[1], float)
        ):
            settings.refuse("sequence_bias", "a list of pairs, each of a list of token ids and a number")
        biases[tuple(pair[0])] = float(pair[1])
    return [{"tokens": list(tokens), "bias": bias} for tokens, bias in biases.items()]


def _bad_words(settings: Settings, ends: list[int]) -> list[list[int]]:
    """The words; an end token alone is none of them."""
    words = settings.values.get("bad_words_ids", [])
    if not isinstance(words, list) or not all(settings.is_sequence(word) for word in words):
        settings.refuse("bad_words_ids", f"a list of lists of token ids below {settings.vocab}")
    return [word for word in words if word not in [[token] for token in ends]]


def _min_tokens(settings: Settings, ends: list[int]) -> dict[str, Any]:
    """The least number of tokens: where both are set, that of new tokens counts."""
    new, length = settings.count("min_new_tokens", 0), settings.count("min_length", 0)
    count = length if new is None else new
    if not ends or not count:
        return {}
    return {"count": count, "end_tokens": ends, "of_prompt": new is None}


def _end_growth(settings: Settings, ends: list[int]) -> dict[str, Any]:
    key = "exponential_decay_length_penalty"
    value = settings.get(key)
    if value is None:
        return {}
    if not (isinstance(value, list) and len(value) == 2 and is_number(value[0], int) and is_number(value[1], float)):
        settings.refuse(key, "a list of a whole number, where it starts, and a factor")
    if value[1] <= 0:
        settings.refuse(key, "a factor above 0")
    if not ends:
        settings.leave(key, "the model has no end token that could become more likely")
        return {}
    return {"start": value[0], "factor": float(value[1]), "end_tokens": ends}
