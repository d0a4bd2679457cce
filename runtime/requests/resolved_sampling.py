"""A request's sampling options with the model's own defaults filled in, so that nothing is left open."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from enginewright.runtime.artifact.generation_defaults import GenerationDefaults
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.logits_processor import ProcessorFactory
from enginewright.runtime.requests.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class ResolvedSampling(Sampling):
    """A Sampling whose fields all have values, by default those that leave tokens greedy; `resolve` creates it.

    Only max_tokens stays None where the request has none of its own: the prompt decides what the model's default leaves.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    logits_processors: Mapping[str, Mapping[str, Any] | ProcessorFactory] = field(default_factory=dict)

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

    @cached_property
    def cutoffs(self) -> tuple[tuple[str, float], ...]:
        """The rules that drop tokens after min_p, with their values, in the order in which they act."""
        return tuple((name, getattr(self, name)) for name, off in _CUTOFFS.items() if getattr(self, name) != off)


_BEYOND_GREEDY: dict[str, object] = {  # field -> the value with which decoding stays greedy
    "temperature": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": None,
    "logits_processors": {},
}
_CUTOFFS = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}  # field -> the value with which it is off
_NOT_COPIED = ("max_tokens", "max_length", "logits_processors")


def resolve(sampling: Sampling, defaults: GenerationDefaults) -> ResolvedSampling:
    """Return the request's options; where it gives none, those of the model, unless it wants none of them."""
    if not sampling.model_defaults:
        defaults = GenerationDefaults()
    values = {name: value for name, value in defaults.given.items() if name not in _NOT_COPIED}
    given = {each.name: getattr(sampling, each.name) for each in dataclasses.fields(sampling)}
    values |= {name: value for name, value in given.items() if value is not None}
    processors = {**defaults.logits_processors, **sampling.logits_processors}
    values["logits_processors"] = {name: value for name, value in processors.items() if value is not None}
    return ResolvedSampling(**values)


def default_limit(sampling: ResolvedSampling, defaults: GenerationDefaults, *, prompt: int, limit: int) -> int:
    """Return how many new tokens may follow `prompt` tokens: at most `limit`, and no more than the model's own default.

    Raises:
        RequestError: the model's longest text leaves no room for a token.
    """
    if sampling.max_tokens is not None or not sampling.model_defaults:
        return limit
    if defaults.max_tokens is not None:
        return min(limit, defaults.max_tokens)
    if defaults.max_length is None:
        return limit
    if prompt >= defaults.max_length:
        raise RequestError(
            f"prompt: got {prompt} tokens, but the model's own default ends a text at {defaults.max_length} (max_length of its "
            "generation_config.json); pass Sampling.max_tokens"
        )
    return min(limit, defaults.max_length - prompt)


def limit_new_tokens(prompt: int, wanted: int | None, context: int, longest: int) -> int:
    """Return how many tokens may follow a prompt of `prompt` tokens; `wanted` where given.

    context: tokens of one request, prompt and completion together.
    longest: tokens that the cache holds of one request.

    Raises:
        RequestError: there is no room for a token, or for as many as wanted.
    """
    room = min(context - prompt, longest - prompt + 1)
    reason = f"the context limit is {context} tokens"
    if longest + 1 < context:
        reason = f"the cache holds {longest} tokens (load with a larger cache_tokens)"
    if room < 1:
        raise RequestError(f"prompt: got {prompt} tokens, but {reason}, one of them new; shorten the prompt")
    if wanted is not None and wanted > room:
        raise RequestError(
            f"Sampling.max_tokens: got {wanted} after a prompt of {prompt} tokens, but {reason}; ask for {room} or fewer, or "
            "None for as many as fit"
        )
    return wanted or room
