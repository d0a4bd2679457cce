"""Compares an engine with the PyTorch model that it was made from: the same token ids go through both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from enginewright.exporters.methods.tolerance import Tolerance
from enginewright.runtime.cache.policy import tokens_before_eviction
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.sampling import Sampling

Floats = NDArray[np.float32]
PROMPT_LENGTHS = (1, 7, 33, 129, 200)  # around and across a tile's edge


@dataclass(frozen=True, kw_only=True)
class GreedyMatch:
    """Greedy tokens of one prompt from engine and model; `compare` creates it.

    prompt_tokens: length of the prompt.
    wanted: how many tokens were generated.
    matched: how many of them, from the start, are the same.
    margin: at the first token that differs, the model's logit of its own choice minus its logit of the engine's; None where
        none differs. A margin within twice the largest logit error is a tie.
    """

    prompt_tokens: int
    wanted: int
    matched: int
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The differences of engine and model over all positions of all prompts; `compare` creates it.

    tokens: number of positions.
    max_error: largest absolute difference of two logits.
    mean_kl: KL(model || engine) in nats per token.
    top1_agreement: share of positions with the same most probable token.
    logit_range: largest absolute logit of the model.
    correlation: of a position's logits from engine and model, the mean over positions.
    greedy: the greedy tokens of each prompt.
    """

    tokens: int
    max_error: float
    mean_kl: float
    top1_agreement: float
    logit_range: float
    correlation: float
    greedy: tuple[GreedyMatch, ...]

    @property
    def unexplained(self) -> tuple[GreedyMatch, ...]:
        """Greedy runs that differ first at something other than a tie."""
        return tuple(g for g in self.greedy if g.margin is not None and g.margin > 2 * self.max_error)


def compare(
    llm: LLM,
    reference: PreTrainedModel,
    *,
    new_tokens: int,
    seed: int = 0,
    prompt_lengths: Sequence[int] = PROMPT_LENGTHS,
) -> Parity:
    """Compare logits over given tokens, and greedy continuations, for random prompts of uneven lengths, all at once.

    new_tokens: greedy tokens of each prompt, at most half of the engine's context.
    prompt_lengths: tokens of each prompt; shortened to what the context has room for, and a cache policy keeps.
    """
    vocab = llm.manifest.model.vocab_size
    limit = min(llm.manifest.limits.max_context, tokens_before_eviction(llm.manifest.cache))
    new_tokens = min(new_tokens, max(1, limit // 2))
    rng = np.random.default_rng(seed)
    lengths = sorted({min(length, limit - new_tokens) for length in prompt_lengths})
    prompts = [rng.integers(0, vocab, length).tolist() for length in lengths]
    greedy = Sampling(max_tokens=new_tokens, ignore_eos=True, model_defaults=False)
    completions = llm.generate(prompts, greedy)
    totals = _Totals()
    matches = []
    for prompt, completion in zip(prompts, completions, strict=True):
        tokens = [*prompt, *completion.token_ids]
        expected = _reference_logits(reference, tokens)
        totals.add(expected, llm.logits(tokens))
        matches.append(_match(expected[len(prompt) - 1 :], completion.token_ids, len(prompt)))
    return totals.parity(tuple(matches))


class _Totals:
    """Sums over positions; `compare` creates it and adds each prompt."""

    def __init__(self) -> None:
        self.tokens, self.agreed, self.kl, self.error, self.range, self.correlation = 0, 0, 0.0, 0.0, 0.0, 0.0

    def add(self, expected: Floats, got: Floats) -> None:
        self.tokens += len(expected)
        self.agreed += int((expected.argmax(-1) == got.argmax(-1)).sum())
        p, q = _log_softmax(expected), _log_softmax(got)
        self.kl += float((np.exp(p) * (p - q)).sum())
        self.correlation += float(_correlations(expected, got).sum())
        self.error = max(self.error, float(np.abs(expected - got).max(initial=0.0)))
        self.range = max(self.range, float(np.abs(expected).max(initial=0.0)))

    def parity(self, greedy: tuple[GreedyMatch, ...]) -> Parity:
        return Parity(
            tokens=self.tokens,
            max_error=self.error,
            mean_kl=max(0.0, self.kl / max(1, self.tokens)),
            top1_agreement=self.agreed / max(1, self.tokens),
            logit_range=self.range,
            correlation=self.correlation / max(1, self.tokens),
            greedy=greedy,
        )


def _match(expected: Floats, tokens: Sequence[int], prompt_tokens: int) -> GreedyMatch:
    """Compare the engine's greedy tokens with the model's choice after the same history."""
    chosen = expected[: len(tokens)].argmax(-1)
    differs = np.flatnonzero(chosen != np.asarray(tokens))
    if not differs.size:
        return GreedyMatch(prompt_tokens=prompt_tokens, wanted=len(tokens), matched=len(tokens))
    first = int(differs[0])
    margin = float(expected[first, chosen[first]] - expected[first, tokens[first]])
    return GreedyMatch(prompt_tokens=prompt_tokens, wanted=len(tokens), matched=first, margin=margin)


def _reference_logits(reference: PreTrainedModel, tokens: Sequence[int]) -> Floats:
    with torch.no_grad():
        logits: Floats = reference(input_ids=torch.tensor([list(tokens)])).logits[0].float().numpy()
    return logits


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _correlations(expected: Floats, got: Floats) -> NDArray[np.float64]:
    """The correlation of each row of logits; 0 where all logits of a row are equal."""
    x, y = (rows.astype(np.float64) - rows.mean(-1, keepdims=True, dtype=np.float64) for rows in (expected, got))
    sizes = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    result: NDArray[np.float64] = (x * y).sum(-1) / np.where(sizes > 0, sizes, 1.0)
    return result


def failures_of(parity: Parity, tolerance: Tolerance) -> list[str]:
    """The figures that are beyond `tolerance`, in words."""
    found = []
    if not all(map(math.isfinite, (parity.max_error, parity.mean_kl, parity.logit_range))):
        found.append("logits are not finite")
    if parity.max_error > tolerance.error * max(1.0, parity.logit_range):
        found.append(f"max error {parity.max_error:.2e} > {tolerance.error:.0e} x logit range {parity.logit_range:.2f}")
    if parity.mean_kl > tolerance.kl:
        found.append(f"mean KL {parity.mean_kl:.2e} > {tolerance.kl:.0e}")
    if tolerance.greedy and parity.unexplained:
        first = parity.unexplained[0]
        found.append(f"greedy tokens part after {first.matched} tokens by a margin of {first.margin:.2e}, no tie")
    return found
