"""Sampling options of a request, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from enginewright.runtime.artifact.sampling_ranges import expected_instead, is_number
from enginewright.runtime.errors import RequestError, shown
from enginewright.runtime.requests.logits_processor import ProcessorFactory

MOST_STOPS, MOST_STOP_CHARACTERS = 1024, 1 << 14
"""Each token's text is searched for all of them, while other requests wait."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options that decide how a request's tokens are chosen, and when it ends.

    A field that is None was not given: the model's own default acts, as `enginewright inspect` shows it, or the value in
    brackets where the model has none. What is given always wins.

    Logits pass, in this order: logit_bias, repetition, presence and frequency penalty, logits_processors, temperature,
    top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff. The processor sequence_bias comes before the penalties.

    temperature: 0 takes the most probable token; otherwise logits are divided by it (0).
    top_k: keep the k most probable tokens (ties at the edge stay); 0: all (0).
    top_p: keep the smallest set of most probable tokens whose mass reaches top_p; 1: all (1).
    min_p: drop tokens less probable than min_p times the most probable one; 0: none (0).
    typical_p: keep the smallest set, of mass typical_p, of the tokens whose surprise is nearest to the expected one; 1: all
        (1).
    epsilon_cutoff: drop tokens less probable than this, but not the most probable one; 0: none (0).
    eta_cutoff: drop tokens less probable than the smaller of this and its root times exp(-entropy), but not the most
        probable one; 0: none (0).
    repetition_penalty: over prompt and output tokens, logit / r where positive, logit * r where negative; 1: off (1).
    presence_penalty, frequency_penalty: over output tokens, logit - presence - frequency * count.
    seed: seed of this request's random stream, 0 to 2**64 - 1; None: drawn from the system. The Completion reports it.
    max_tokens: the most new tokens (as many as fit).
    stop: end before any of these strings appears in the text, or in the text with special tokens where they are left out;
        a plain string counts as one stop string (none). The token that ends a request has no text.
    stop_token_ids: end with any of these tokens, as with the model's own end tokens.
    logprobs: report the log-probability of each chosen token, and those of this many most probable tokens.
        They are the log-softmax of the model's logits, before any other field acts.
    logit_bias: token id -> added to its logit.
    ignore_eos: do not end at the model's own end tokens.
    skip_special_tokens: leave special tokens out of the text.
    logits_processors: further changes of the logits: the name of an installed processor with its options, or any name with
        a ProcessorFactory of the caller's own. The bundled ones act in the order of their kinds, then the others in this
        order. They come on top of the model's own; one of the same name replaces that, and None switches it off.
    conditions: what the request chooses of the engine's conditions: the condition's name with that of an entry, or with
        (entry, scale) where the condition has a scale. A condition that is not named is off.
    vector: the name of a vector that the graph adds to the prompt's last token and all after it, in an engine that adds
        vectors; `LLM.load_vector` and the engine directory give names (none).
    vector_scale: the factor of the vector.
    adapter: the name of a LoRA adapter that acts on the whole request, in an engine that adds adapters; `LLM.load_adapter`
        gives names (none).
    adapter_scale: the factor on what the adapter adds.
    model_defaults: whether the model's own defaults act where a field is not given; else the values in brackets do.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] | None = None
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logits_processors: Mapping[str, Mapping[str, Any] | ProcessorFactory | None] = field(default_factory=dict)
    conditions: Mapping[str, str | tuple[str, float]] = field(default_factory=dict)
    vector: str | None = None
    vector_scale: float = 1.0
    adapter: str | None = None
    adapter_scale: float = 1.0
    model_defaults: bool = True

    def __post_init__(self) -> None:
        for each in fields(Sampling):
            value = getattr(self, each.name)
            if value is None and each.default is None:
                continue
            if (expected := expected_instead(each.name, value)) is not None:
                raise RequestError(f"Sampling.{each.name}: got {shown(value)}, expected {expected}")
        if not isinstance(self.skip_special_tokens, bool):
            raise RequestError(
                f"Sampling.skip_special_tokens: got {shown(self.skip_special_tokens)}, expected True or False"
            )
        _check_named("vector", self.vector, self.vector_scale)
        _check_named("adapter", self.adapter, self.adapter_scale)
        if self.stop is not None:
            object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "logits_processors", _processors(self.logits_processors))
        object.__setattr__(self, "conditions", _conditions(self.conditions))


def _stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(stop, Sequence):
        raise RequestError(f"Sampling.stop: got {shown(stop)}, expected a string, or a list of strings")
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise RequestError(f"Sampling.stop: got {shown(string)}, expected strings that are not empty")
    characters = sum(map(len, strings))
    if len(strings) > MOST_STOPS or characters > MOST_STOP_CHARACTERS:
        raise RequestError(
            f"Sampling.stop: got {len(strings)} strings of {characters} characters, expected {MOST_STOPS} strings of "
            f"{MOST_STOP_CHARACTERS} characters together at most"
        )
    return strings


def _token_ids(name: str, ids: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(ids, Sequence):
        raise RequestError(f"Sampling.{name}: got {shown(ids)}, expected a list of token ids")
    for token in ids:
        if not is_number(token, int) or token < 0:
            raise RequestError(f"Sampling.{name}: got {shown(token)}, expected token ids, whole numbers from 0 up")
    return tuple(ids)


def _biases(biases: Mapping[int, float]) -> dict[int, float]:
    if not isinstance(biases, Mapping):
        raise RequestError(
            f"Sampling.logit_bias: got {shown(biases)}, expected token ids with what is added to their logits"
        )
    _token_ids("logit_bias", tuple(biases))
    for token, bias in biases.items():
        if not is_number(bias, float):
            raise RequestError(f"Sampling.logit_bias[{shown(token)}]: got {shown(bias)}, expected a finite number")
    return dict(biases)


def _processors(given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise RequestError(f"Sampling.logits_processors: got {shown(given)}, expected names with options or factories")
    for name, value in given.items():
        if value is not None and not isinstance(value, Mapping) and not callable(value):
            raise RequestError(
                f"Sampling.logits_processors[{shown(name)}]: got {shown(value)}, expected the options of an installed processor, a "
                "function that makes a processor, or None to switch the model's own off"
            )
    return dict(given)


def _conditions(given: Mapping[str, Any]) -> dict[str, str | tuple[str, float]]:
    if not isinstance(given, Mapping):
        raise RequestError(
            f"Sampling.conditions: got {shown(given)}, expected names of conditions with names of entries"
        )
    for name, value in given.items():
        entry, scale = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
        if not isinstance(entry, str) or not is_number(scale, float):
            raise RequestError(
                f"Sampling.conditions[{shown(name)}]: got {shown(value)}, expected the name of an entry, or (name, scale)"
            )
    return dict(given)


def _check_named(field: str, name: object, scale: float) -> None:
    """Raise RequestError unless a vector or an adapter is named by text, and scaled only where it is named."""
    if name is not None and (not isinstance(name, str) or not name):
        article = "an" if field == "adapter" else "a"
        raise RequestError(f"Sampling.{field}: got {shown(name)}, expected the name of {article} {field}, or None")
    if name is None and scale != 1:
        raise RequestError(f"Sampling.{field}_scale: got {shown(scale)} without a name; name one in {field}")
