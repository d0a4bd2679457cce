"""Results of a request: tokens as they are decided, and the finished completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]

Event: TypeAlias = "Token | Completion | Exception"


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is decided. text: what it makes certain of the text; pieces of one request join to its text."""

    id: int
    text: str
    logprobs: Logprobs | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished request.

    text: without the stop string; empty when the engine has no tokenizer.
    token_ids: every token decided, the one that ended the request included.
    finish_reason: "stop" for an end token or stop string, "length" for max_tokens or the context limit, or "cancelled".
    prompt_tokens: the prompt's length. reused_tokens: of those, how many another request had computed.
    guessed_tokens: where a step may decide several tokens, guesses that the model itself judged afterwards;
    agreed_tokens: those among them that it would have chosen.
    logprobs: one per token when asked for.
    seed: of the random stream; with the same prompt and Sampling it gives the same draws again.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[Logprobs, ...] | None
    seed: int
    reused_tokens: int = 0
    guessed_tokens: int = 0
    agreed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities under the model's own logits: of the chosen token, and (token id, value) of the top ones."""

    chosen: float
    top: tuple[tuple[int, float], ...]
