"""The engines that a sweep builds of a checkpoint, each with its reference and its tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from benchmarks.families.verdicts import Verdict
from enginewright.exporters.methods.kvarn import Config
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.methods.tolerance import tolerance_of_numbers
from enginewright.exporters.parity import compare, failures_of
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.weights.registry import choose_storage
from enginewright.runtime.llm import LLM
from tests.support.exporters.kvarn_reference import oracle_logits, plain_logits

CONTEXT = 448
LENGTHS = (1, 150, 300)
"""Tokens of the prompts: one, more than a tile and a window, and more than two of each."""
KVARN_TOKENS = 430  # three tiles and a piece, of which the second and third are codes
NEW_TOKENS = 6
FLOAT_ERROR = 1e-5
"""The largest error where only the order of float32 sums differs, as a part of the largest logit, or of 1 if that is less."""
KVARN = Config()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to build and check an engine.

    name: of the variant, a column of the table.
    recipe: of the build.
    check: compares an opened engine with transformers' model of the same checkpoint.
    """

    name: str
    recipe: Recipe
    check: Callable[[LLM, PreTrainedModel], Verdict]


def check_float(llm: LLM, reference: PreTrainedModel) -> Verdict:
    """Compare logits of prompts and of decoded tokens: no error beyond FLOAT_ERROR, and the same greedy tokens but for ties.

    The value is the largest error of a logit.
    """
    parity = compare(llm, reference, new_tokens=NEW_TOKENS, prompt_lengths=LENGTHS)
    is_right = parity.max_error <= FLOAT_ERROR * max(1.0, parity.logit_range) and not parity.unexplained
    told = "" if is_right else f"error {parity.max_error:.1e} of logits up to {parity.logit_range:.1f}"
    return Verdict(kind="right" if is_right else "wrong", value=parity.max_error, told=told)


def check_codes(llm: LLM, reference: PreTrainedModel) -> Verdict:
    """Compare by the tolerance that `enginewright check` has for weights of few bits; the value is the mean KL in nats."""
    parity = compare(llm, reference, new_tokens=NEW_TOKENS, prompt_lengths=LENGTHS)
    failures = failures_of(parity, tolerance_of_numbers(llm.manifest))
    return Verdict(kind="wrong" if failures else "right", value=parity.mean_kl, told="; ".join(failures))


def check_kvarn(llm: LLM, reference: PreTrainedModel) -> Verdict:
    """Compare with the model whose attention is KVarN's oracle; the value is the error as a part of the method's own effect.

    Sums in another order round a few codes the other way, so a tenth of the effect is allowed; an engine that encoded
    nothing, or otherwise, would be off by all of it. One token in twenty may be off by more: near a tie, such a code sends a
    token to another expert.
    """
    tokens = np.random.default_rng(1).integers(3, llm.manifest.model.vocab_size, KVARN_TOKENS).tolist()
    exact, expected = plain_logits(reference, tokens), oracle_logits(reference, tokens, KVARN)
    reference.config._attn_implementation = "eager"
    errors, effects = np.abs(llm.logits(tokens) - expected).max(-1), np.abs(exact - expected).max(-1)
    is_right = bool(np.quantile(errors, 0.95) <= 0.1 * np.quantile(effects, 0.95))
    part = float(errors.max() / effects.max())
    told = "" if is_right else f"error {errors.max():.1e}, {part:.2f} of the method's effect"
    return Verdict(kind="right" if is_right else "wrong", value=part, told=told)


def _recipe(**options: object) -> Recipe:
    return Recipe(max_batch=4, max_context=CONTEXT, **options)  # type: ignore[arg-type]


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(name="float32", recipe=_recipe(kv_bits=32), check=check_float),
        Variant(name="plugins none", recipe=_recipe(plugins="none"), check=check_float),
        Variant(name="int8", recipe=_recipe(kv_bits=32, weights=choose_storage("int8")), check=check_codes),
        Variant(name="kvarn", recipe=_recipe(apply=(Applied("kvarn", KVARN),)), check=check_kvarn),
    )
}


def engine_path(root: Path, variant: Variant) -> Path:
    """The directory of a variant's engine under `root`."""
    return root / variant.name.replace(" ", "-")
