"""Tests of running engines with extra heads: the paper's invariants of free-running emission."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.exporters.methods.clp.method import Config
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe
from enginewright.runtime import Sampling
from enginewright.runtime.cli import main
from enginewright.runtime.loader import load
from enginewright.runtime.requests.completion import Completion
from tests.support.exporters.clp_sets import Edit, random_set
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker

pytestmark = [pytest.mark.native, pytest.mark.slow]
NEW_TOKENS, SAID = 40, 77
PROMPTS = [np.random.default_rng(i).integers(3, 250, length).tolist() for i, length in enumerate((1, 9, 127, 140))]
GREEDY = Sampling(max_tokens=NEW_TOKENS, ignore_eos=True)


def classify(length: int, score: float = 50.0) -> Edit:
    """A classifier that always says `length`."""

    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors["classifier.weight"][:] = 0
        tensors["classifier.bias"][:] = np.where(np.arange(3) == length, score, 0)

    return edit


def say(tensors: dict[str, np.ndarray]) -> None:
    """Heads that always say one token, and a classifier that believes them."""
    classify(2)(tensors)
    for j in range(2):
        tensors[f"heads.{j}.out.bias"][SAID] = 1e6


@pytest.fixture
def completions(checkpoint: CheckpointMaker, engine: EngineMaker, tmp_path: Path) -> Any:
    """Greedy completions of an engine of qwen2 with the edited heads, or without any."""

    def run(edit: Edit | None = None, prompts: list[list[int]] = PROMPTS, **options: Any) -> list[Completion]:
        model = checkpoint("qwen2")
        apply: tuple[Applied, ...] = ()
        if edit is not None or options:
            heads = random_set(model, tmp_path / "heads", edit=edit)
            apply = (Applied("clp", Config(heads=str(heads), **options)),)
        root, _ = engine(model, Recipe(apply=apply, kv_bits=32, max_batch=4))
        with load(root, 1) as llm:
            return llm.generate(prompts, GREEDY)

    return run


def ids(found: list[Completion]) -> list[list[int]]:
    """The token ids of the completions."""
    return [list(completion.token_ids) for completion in found]


def test_without_certainty_it_is_greedy_decoding(completions: Any) -> None:
    found = completions(classify(2, score=1.0), tau=1.0)
    assert ids(found) == ids(completions())
    assert all(completion.guessed_tokens == 0 for completion in found)


@pytest.mark.parametrize("edit", [None, say, classify(2)], ids=["random", "one token", "random, all"])
def test_verified_tokens_are_greedy_decodings(edit: Edit | None, completions: Any) -> None:
    found = completions(edit, verify=True)
    assert ids(found) == ids(completions())
    assert sum(completion.guessed_tokens for completion in found) > 20


def test_nothing_is_verified_silently(completions: Any) -> None:
    """The model's own token, then what the heads say, twice; the model's own tokens follow from all before them."""
    found = completions(say)
    for tokens in ids(found):
        assert len(tokens) == NEW_TOKENS
        assert tokens[1::3] == [SAID] * len(tokens[1::3]) and tokens[2::3] == [SAID] * len(tokens[2::3])
    for prompt, tokens in zip(PROMPTS, ids(found), strict=True):
        own = completions(prompts=[prompt + tokens[:9]])
        assert ids(own)[0][0] == tokens[9]


def test_a_request_alone_gets_what_it_gets_among_others(completions: Any) -> None:
    together = ids(completions(None, tau=0.4))
    assert together == [ids(completions(None, [prompt], tau=0.4))[0] for prompt in PROMPTS]
    assert together != ids(completions())


@pytest.mark.parametrize("verify", [False, True])
def test_an_engine_passes_its_check(
    verify: bool, checkpoint: CheckpointMaker, engine: EngineMaker, tmp_path: Path
) -> None:
    model = checkpoint("qwen2")
    heads = random_set(model, tmp_path / "heads")
    applied = (Applied("clp", Config(heads=str(heads), verify=verify)),)
    root, _ = engine(model, Recipe(apply=applied, kv_bits=32, max_batch=4))
    assert main(["check", str(root), "--model", str(model), "--new-tokens", "20", "--threads", "1"]) == 0
