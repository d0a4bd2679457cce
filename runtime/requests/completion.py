"""The results of a request: each token as it is decided, and the completion at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]

Event: TypeAlias = "Token | Completion | Exception"


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is decided.

    id: the token's id.
    text: the piece of text that this token makes certain, maybe empty; the pieces of a request join to its text.
    logprobs: the token's log-probabilities, where the request asks for them.
    """

    id: int
    text: str
    logprobs: Logprobs | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished request.

    text: the generated text, without the stop string; empty when the engine has no tokenizer.
    token_ids: every token decided, including the one that ended the request.
    finish_reason: "stop" for an end token or stop string, "length" for max_tokens or the context limit, or "cancelled".
    prompt_tokens: number of tokens in the prompt.
    logprobs: one entry per token, where the request asks for them; otherwise None.
    seed: the seed of the random stream; with the same prompt and Sampling it gives the same draws again.
    reused_tokens: how many of the prompt's tokens another request had computed already.
    guessed_tokens: where a step may decide several tokens, how many guesses the model itself judged afterwards.
    agreed_tokens: how many of those guesses the model would have chosen itself.
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

    def __repr__(self) -> str:
        """Return the text, the finish reason and the counts of tokens, which a reader at a Python prompt looks for first."""
        parts = [repr(self.text), self.finish_reason, f"{len(self.token_ids)} tokens after {self.prompt_tokens}"]
        if self.reused_tokens:
            parts.append(f"{self.reused_tokens} reused")
        if self.guessed_tokens:
            parts.append(f"{self.agreed_tokens} of {self.guessed_tokens} guesses agreed")
        return f"Completion({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities under the model's own logits.

    chosen: of the chosen token.
    top: (token id, log-probability) of the most probable tokens, highest first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]
