"""The trial of a new engine: before a build publishes what it made, it runs a few steps of it on this machine.

A build that ends well says that the engine works, not only that it was written. The trial runs what a server would run: two
prompts of different lengths at once, with decoding steps after them, and then the same tokens again as prompts. At the end it
compares logits with those of the PyTorch model, if that fits into memory.

It opens an engine with the runtime, so it may import across packages.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from enginewright.exporters.methods import registry
from enginewright.exporters.methods.tolerance import FINE_CODES, Tolerance, tolerance_of_numbers
from enginewright.exporters.parity import Parity, compare, failures_of
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.onnxruntime.load_errors import LOAD_ERRORS
from enginewright.runtime.backends.session import policy_offers
from enginewright.runtime.cache.policy import check_policy, tokens_before_eviction
from enginewright.runtime.errors import BuildError, EnginewrightError, UnsupportedError
from enginewright.runtime.llm import LLM
from enginewright.runtime.loader import load
from enginewright.runtime.machine import available_memory
from enginewright.runtime.requests.sampling import Sampling

Kind: TypeAlias = Literal["none", "step", "logits"]
KINDS: tuple[Kind, ...] = ("none", "step", "logits")
REPORT = Path("reports/trial.json")
PROMPT_LENGTHS = 7, 140  # the second one goes over the edge of a tile
ENCODED_LENGTHS = 7, 300  # enough for a tile between the first and the newest, which are not encoded
NEW_TOKENS = 3
LEAST_CONTEXT = 2 * NEW_TOKENS
ROWS, CACHE_TOKENS = 2, 1024
OPEN_ERRORS: tuple[type[Exception], ...] = (EnginewrightError, *LOAD_ERRORS)
STEP_ERRORS: tuple[type[Exception], ...] = (*OPEN_ERRORS, RuntimeError, ValueError)
SLACK = 10
"""The factor on what `check` allows: a trial looks for engines that are broken, not for rounding."""
TIE = 0.05
"""The part of the largest logit by which a token that is not the model's first choice may be behind it."""
LEAST_CORRELATION = 0.5
"""Of the logits of an engine whose weights or cache are codes of a few bits. Honest ones of 4 bits had 0.93 and more with
their float models; where weights, scales or rows were mixed up it was between -0.06 and 0.06."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The outcome of a trial that found nothing wrong; `try_engine` creates it.

    kind: what was done: none; step: the steps ran and their logits are numbers; logits: they also agree with the model's.
    told: the same in a sentence, with the reason where it was less than asked for.
    parity: the figures of the comparison; None where nothing was compared.
    """

    kind: Kind
    told: str
    parity: Parity | None = None

    def save(self, root: Path) -> None:
        """Write the report into the engine directory `root`."""
        path = root / REPORT
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def check_kind(kind: str) -> None:
    """Raise BuildError unless `kind` is one of KINDS."""
    if kind not in KINDS:
        raise BuildError(f"trial: got {kind!r}, expected one of {', '.join(KINDS)}")


def try_engine(root: Path, manifest: Manifest, model: str, recipe: Recipe, backend: str, kind: Kind) -> Trial:
    """Run the new engine in the directory `root`, and compare it with the checkpoint `model`, as far as this machine can.

    kind: the most that is done.

    Raises:
        BuildError: the engine does not open, here or anywhere, a step fails, logits are not finite, or they are not the
            model's.
    """
    if kind == "none":
        return Trial(kind="none", told="not tried")
    if manifest.limits.max_context < LEAST_CONTEXT:
        return Trial(kind="none", told=f"not tried, for a context of {manifest.limits.max_context} tokens is too short")
    try:
        check_policy(
            manifest.cache,
            policy_offers(manifest, runs_graphs=True),
            tokens_a_step=manifest.tokens_per_row,
            takes_back=manifest.takes_back,
        )
    except EnginewrightError as e:
        raise BuildError(f"trial: got an engine that no machine can run ({e}); {_ADVICE}") from e
    try:
        llm = load(
            root,
            max_batch=min(ROWS, manifest.limits.max_batch),
            cache_tokens=CACHE_TOKENS,
            prefix_reuse=False,
            verify=False,
            backend=backend,
        )
    except UnsupportedError as e:
        return Trial(kind="none", told=f"not tried, because this machine cannot run it: {e}")
    except OPEN_ERRORS as e:
        raise BuildError(f"trial: got an engine for {backend} that does not open ({e}); {_ADVICE}") from e
    with llm:
        _run_steps(llm, backend)
        if kind == "step":
            return Trial(kind="step", told="tried: its first steps ran")
        if reason := _no_reference(manifest):
            return Trial(kind="step", told=f"tried: its first steps ran; not compared with the model, {reason}")
        return _compare(llm, model, recipe)


_ADVICE = "nothing was published; build with --trial none to keep it all the same"


def _lengths(manifest: Manifest) -> tuple[int, ...]:
    """The tokens of the prompts, as far as the context has room for them."""
    encodes = any(layer.exact_bytes for layer in manifest.cache.layers)
    room = manifest.limits.max_context - NEW_TOKENS
    return tuple(min(length, room) for length in (ENCODED_LENGTHS if encodes else PROMPT_LENGTHS))


def _run_steps(llm: LLM, backend: str) -> None:
    """Read prompts of different lengths at once, decode a few tokens of each, and read prompts and tokens again.

    Raises:
        BuildError: a step fails, logits are not finite, or decoding gives other tokens than reading does.
    """
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, llm.manifest.model.vocab_size, length).tolist() for length in _lengths(llm.manifest)]
    try:
        room = llm.manifest.limits.max_context - max(map(len, prompts))
        count = min(NEW_TOKENS * llm.manifest.tokens_per_row, room)  # enough for drafts to be checked
        completions = llm.generate(prompts, Sampling(max_tokens=count, ignore_eos=True, model_defaults=False))
        texts = [(prompt, list(each.token_ids)) for prompt, each in zip(prompts, completions, strict=True)]
        logits = [llm.logits([*prompt, *tokens])[len(prompt) - 1 :] for prompt, tokens in texts]
    except STEP_ERRORS as e:
        raise BuildError(f"trial: got an engine for {backend} whose first steps fail ({e}); {_ADVICE}") from e
    if not all(np.isfinite(each).all() for each in logits):
        raise BuildError(
            "trial: got logits that are not finite, expected numbers; the checkpoint's weights are damaged, or too large for "
            f"the engine's types; {_ADVICE}"
        )
    if llm.manifest.decoding.get("kind") != "autoregressive":
        return  # tokens may come from elsewhere than the logits
    kept = tokens_before_eviction(llm.manifest.cache)
    for (prompt, tokens), rows in zip(texts, logits, strict=True):
        if len(prompt) + len(tokens) > kept:
            continue  # a prompt evicts at its end, a text that is read elsewhere
        behind = rows[: len(tokens)].max(-1) - rows[np.arange(len(tokens)), tokens]
        if behind.max(initial=0.0) > TIE * max(1.0, float(np.abs(rows).max())):
            raise BuildError(
                f"trial: got decoded tokens whose logits are up to {behind.max():.2f} below the largest when the same tokens "
                f"are read as a prompt, expected the largest; {_ADVICE}"
            )


def _no_reference(manifest: Manifest) -> str:
    """The reason why the float model cannot be loaded next to the engine; empty where it can."""
    needed, free = 4 * manifest.model.parameters, available_memory()
    if 2 * needed <= free:
        return ""
    return (
        f"whose float weights take {needed / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB that are free"
    )


def _compare(llm: LLM, model: str, recipe: Recipe) -> Trial:
    """Compare logits and greedy tokens with the PyTorch model's.

    Raises:
        BuildError: the differences are beyond what the engine's numbers and methods explain.
    """
    reference = load_reference(model, recipe.apply, max_context=llm.manifest.limits.max_context)
    parity = compare(llm, reference, new_tokens=NEW_TOKENS, prompt_lengths=_lengths(llm.manifest))
    tolerance = registry.tolerance(recipe.apply, tolerance_of_numbers(llm.manifest))
    if failures := _failures(parity, tolerance):
        raise BuildError(
            f"trial: got an engine that differs from {llm.manifest.name}: {'; '.join(failures)}; {_ADVICE}"
        )
    told = f"tried: its logits are the model's (max error {parity.max_error:.1e}, largest {parity.logit_range:.1f})"
    if _is_coarse(tolerance):
        told = f"tried: its logits correlate with the model's, at {parity.correlation:.3f}"
    return Trial(kind="logits", told=told, parity=parity)


def _failures(parity: Parity, tolerance: Tolerance) -> list[str]:
    """The figures beyond SLACK times the tolerance; of a coarse engine, whose error is meant, the correlation alone."""
    if not _is_coarse(tolerance):
        loose = Tolerance(error=SLACK * tolerance.error, kl=SLACK * tolerance.kl, greedy=False)
        found = failures_of(parity, loose)
        margin = max((match.margin or 0.0 for match in parity.greedy), default=0.0)
        if tolerance.greedy and margin > TIE * max(1.0, parity.logit_range):
            found.append(f"a greedy token is {margin:.2f} behind the model's in its own logits")
        return found
    if parity.correlation >= LEAST_CORRELATION:
        return []
    return [f"the correlation of the logits is {parity.correlation:.2f}, expected {LEAST_CORRELATION} or more"]


def _is_coarse(tolerance: Tolerance) -> bool:
    """Whether the engine differs from its model on purpose, as one whose numbers are codes of few bits."""
    return tolerance.kl >= FINE_CODES.kl
