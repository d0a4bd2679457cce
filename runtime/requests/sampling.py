"""Sampling options of a request, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.logits_processor import ProcessorFactory


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options that decide how a request's tokens are chosen, and when it ends.

    Logits pass, in this order: logit_bias, repetition, presence and frequency penalty, logits_processors, temperature,
    top_k, top_p, min_p.

    temperature: 0 takes the most probable token; otherwise logits are divided by it.
    top_k: keep the k most probable tokens (ties at the edge stay); 0: all.
    top_p: keep the smallest set of most probable tokens whose mass reaches top_p; 1: all.
    min_p: drop tokens less probable than min_p times the most probable one; 0: none.
    repetition_penalty: over prompt and output tokens, logit / r where positive, logit * r where negative; 1: off.
    presence_penalty, frequency_penalty: over output tokens, logit - presence - frequency * count.
    seed: seed of this request's random stream, 0 to 2**64 - 1; None: drawn from the system. The Completion reports it.
    max_tokens: the most new tokens; None: up to the context limit.
    stop: end before any of these strings appears in the text, or in the text with special tokens where they are left out;
        a plain string counts as one stop string. The token that ends a request has no text.
    stop_token_ids: end with any of these tokens, as with the model's own end tokens.
    logprobs: report the log-probability of each chosen token, and those of this many most probable tokens.
        They are the log-softmax of the model's logits, before any other field acts.
    logit_bias: token id -> added to its logit.
    ignore_eos: do not end at the model's own end tokens.
    skip_special_tokens: leave special tokens out of the text.
    logits_processors: further changes of the logits, in this order: the name of an installed processor with its options, or
        any name with a ProcessorFactory of the caller's own.
    conditions: what the request chooses of the engine's conditions: the condition's name with that of an entry, or with
        (entry, scale) where the condition has a scale. A condition that is not named is off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logits_processors: Mapping[str, Mapping[str, Any] | ProcessorFactory] = field(default_factory=dict)
    conditions: Mapping[str, str | tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind, holds, expected in _RANGES:
            value = getattr(self, name)
            if value is None and name in ("seed", "max_tokens", "logprobs"):
                continue
            if not _is_number(value, kind) or not holds(value):
                raise RequestError(f"Sampling.{name}: got {value!r}, expected {expected}")
        if not isinstance(self.skip_special_tokens, bool):
            raise RequestError(
                f"Sampling.skip_special_tokens: got {self.skip_special_tokens!r}, expected True or False"
            )
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "logits_processors", _processors(self.logits_processors))
        object.__setattr__(self, "conditions", _conditions(self.conditions))

    @property
    def changes_logits(self) -> bool:
        """Whether the logits change before the temperature acts."""
        penalties = (self.repetition_penalty - 1.0, self.presence_penalty, self.frequency_penalty)
        return bool(self.logit_bias) or any(penalties) or bool(self.logits_processors)

    @property
    def beyond_greedy(self) -> tuple[str, ...]:
        """The fields that may make the next token another than the largest logit's, or that ask for more than tokens."""
        return tuple(name for name, off in _BEYOND_GREEDY.items() if getattr(self, name) != off)

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the next token is that of the largest logit, and nothing but tokens is asked for."""
        return not self.beyond_greedy


_BEYOND_GREEDY: dict[str, object] = {  # field -> the value with which decoding stays greedy
    "temperature": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": None,
    "logits_processors": {},
}

_RANGES: tuple[tuple[str, type, Callable[[float], bool], str], ...] = (
    ("temperature", float, lambda v: v >= 0, "a number from 0 (greedy) up"),
    ("top_k", int, lambda v: v >= 0, "a whole number from 0 (off) up"),
    ("top_p", float, lambda v: 0 < v <= 1, "a number above 0, up to 1 (off)"),
    ("min_p", float, lambda v: 0 <= v <= 1, "a number from 0 (off) to 1"),
    ("repetition_penalty", float, lambda v: v > 0, "a number above 0; 1 is off"),
    ("presence_penalty", float, lambda v: True, "a finite number"),
    ("frequency_penalty", float, lambda v: True, "a finite number"),
    ("seed", int, lambda v: 0 <= v < 2**64, "None or a whole number from 0 to 2**64 - 1"),
    ("max_tokens", int, lambda v: v >= 1, "None or a whole number from 1 up"),
    ("logprobs", int, lambda v: 0 <= v <= 1000, "None or a whole number from 0 to 1000"),
)


def _is_number(value: object, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        return False
    return math.isfinite(value)


def _stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise RequestError(f"Sampling.stop: got {string!r}, expected strings that are not empty")
    return strings


def _token_ids(name: str, ids: Sequence[int]) -> tuple[int, ...]:
    for token in ids:
        if not _is_number(token, int) or token < 0:
            raise RequestError(f"Sampling.{name}: got {token!r}, expected token ids, whole numbers from 0 up")
    return tuple(ids)


def _biases(biases: Mapping[int, float]) -> dict[int, float]:
    _token_ids("logit_bias", tuple(biases))
    for token, bias in biases.items():
        if not _is_number(bias, float):
            raise RequestError(f"Sampling.logit_bias[{token}]: got {bias!r}, expected a finite number")
    return dict(biases)


def _processors(given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise RequestError(f"Sampling.logits_processors: got {given!r}, expected names with options or factories")
    for name, value in given.items():
        if not isinstance(value, Mapping) and not callable(value):
            raise RequestError(
                f"Sampling.logits_processors[{name!r}]: got {value!r}, expected the options of an installed processor, or a "
                "function that makes a processor"
            )
    return dict(given)


def _conditions(given: Mapping[str, Any]) -> dict[str, str | tuple[str, float]]:
    if not isinstance(given, Mapping):
        raise RequestError(f"Sampling.conditions: got {given!r}, expected names of conditions with names of entries")
    for name, value in given.items():
        entry, scale = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
        if not isinstance(entry, str) or not _is_number(scale, float):
            raise RequestError(
                f"Sampling.conditions[{name!r}]: got {value!r}, expected the name of an entry, or (name, scale)"
            )
    return dict(given)
