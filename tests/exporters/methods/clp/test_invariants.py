"""Invariants of engines with extra heads: those that hold for any guesses, and those that hold where all are right.

The heads are made by hand: silent ones, ones that always say the same token, and ones that remember the model's own answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from enginewright.exporters.build import build
from enginewright.exporters.methods.clp.method import Config
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime import LLM, Completion, Sampling, load
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.session import Outputs, PackedStep
from tests.support.exporters.clp_sets import Edit, random_set
from tests.support.exporters.depth_step import Pool, read_pool, run_decoder
from tests.support.exporters.families import save_checkpoint

pytestmark = [pytest.mark.native, pytest.mark.slow]

PROMPT = [5, 6, 7, 41, 200, 17]
LENGTH, WIDTH, STRANGER = 40, 3, 99
GREEDY = Sampling(max_tokens=LENGTH, ignore_eos=True)


@dataclass(frozen=True)
class Backbone:
    """A checkpoint, its plain engine, and that engine's answer to PROMPT."""

    model: Path
    engine: Path
    manifest: Manifest
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One answer; for each of its steps, the number of tokens it brought and the number that the cache had before."""

    completion: Completion
    brought: list[int]
    held: list[int]
    pools: list[Pool]  # as the last step left them

    @property
    def tokens(self) -> list[int]:
        """The tokens of the answer."""
        return list(self.completion.token_ids)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A model whose answer does not go round in a circle."""
    root = tmp_path_factory.mktemp("backbone")
    save_checkpoint("qwen3", root / "model", gain=3.0)
    manifest = build(str(root / "model"), root / "engine", Recipe(kv_bits=32, max_batch=4), "onnxruntime")
    with load(root / "engine", threads=1) as llm:
        answer = tuple(llm.generate([PROMPT], GREEDY)[0].token_ids)
    assert len(set(answer)) > 15 and STRANGER not in answer
    return Backbone(root / "model", root / "engine", manifest, answer)


def always(length: int) -> Edit:
    """A classifier that is certain of this many extra tokens."""

    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors["classifier.weight"][:] = 0
        tensors["classifier.bias"][:] = 50.0 * (np.arange(len(tensors["classifier.bias"])) == length)

    return edit


def stubborn(tensors: dict[str, np.ndarray]) -> None:
    """Heads that say STRANGER, always."""
    always(WIDTH - 1)(tensors)
    for j in range(WIDTH - 1):
        tensors[f"heads.{j}.out.bias"][STRANGER] = 1e6


def knowing(backbone: Backbone) -> Edit:
    """Heads that predict the tokens that the model will give after PROMPT: a least-squares fit through its own states."""
    reference, tokens = load_reference(str(backbone.model), ()), [*PROMPT, *backbone.answer]
    with torch.no_grad():
        states = reference.model(input_ids=torch.tensor([tokens])).last_hidden_state[0].numpy()

    def edit(tensors: dict[str, np.ndarray]) -> None:
        always(WIDTH - 1)(tensors)
        for j in range(WIDTH - 1):
            at = np.arange(len(PROMPT) - 1, len(tokens) - 2 - j)
            up = torch.from_numpy(states[at] @ tensors[f"heads.{j}.up.weight"].T + tensors[f"heads.{j}.up.bias"])
            inner = torch.nn.functional.gelu(up).numpy()
            wanted = np.eye(len(tensors[f"heads.{j}.out.bias"]), dtype=np.float32)[np.array(tokens)[at + 2 + j]]
            tensors[f"heads.{j}.out.weight"][:] = np.linalg.lstsq(inner, wanted, rcond=None)[0].T
            tensors[f"heads.{j}.out.bias"][:] = 0

    return edit


def engine_of(backbone: Backbone, path: Path, edit: Edit | None, **options: float) -> Path:
    """An engine whose heads `edit` makes."""
    heads = random_set(backbone.model, path / "heads", head_hidden=256, edit=edit)
    method = Applied("clp", Config(heads=str(heads), **options))  # type: ignore[arg-type]
    recipe = Recipe(apply=(method,), kv_bits=32, max_batch=4)
    build(str(backbone.model), path / "engine", recipe, "onnxruntime")
    return path / "engine"


def answer(llm: LLM, sampling: Sampling = GREEDY) -> Run:
    """The engine's answer to PROMPT."""
    run_step, brought, held, pools = llm.loop.session.run, [], [], []

    def spy(step: PackedStep) -> Outputs:
        outputs = run_step(step)
        brought.append(len(step.input_ids))
        held.append(int(llm.loop.scheduler.tables.kv_lens[0, 0, 0]))
        pools[:] = cached(llm)
        return outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.loop.session, "run", spy)
        completion = llm.generate([PROMPT], sampling)[0]
    return Run(completion, brought, held, pools)


def cached(llm: LLM) -> list[Pool]:
    """The keys and values of the first row, [context, Hkv, D] of each layer."""
    tables, buffers = llm.loop.scheduler.tables, llm.loop.session._buffers  # type: ignore[attr-defined]
    pools = []
    for i, layer in enumerate(llm.manifest.cache.layers):
        tiles = buffers[f"kv.{i}.tiles"][tables.tile_table[i, 0]].reshape(-1, layer.tile_bytes)
        pools.append(read_pool(tiles, layer.kv_heads, layer.key_dim, llm.capacity.context))
    return pools


def test_a_classifier_that_is_never_sure_leaves_plain_decoding(backbone: Backbone, tmp_path: Path) -> None:
    """At tau 1: the likeliest length of three is never certain."""
    with load(engine_of(backbone, tmp_path, None, tau=1.0), threads=1) as llm:
        run = answer(llm)
    assert run.tokens == list(backbone.answer)
    assert run.completion.guessed_tokens == 0
    assert len(run.brought) == LENGTH


@pytest.mark.parametrize("verify", [False, True])
def test_heads_that_know_the_answer_save_two_steps_of_three(verify: bool, backbone: Backbone, tmp_path: Path) -> None:
    with load(engine_of(backbone, tmp_path, knowing(backbone), tau=0.3, verify=verify), threads=1) as llm:
        run = answer(llm)
        assert run.tokens == list(backbone.answer)
        assert len(run.brought) == -(-LENGTH // WIDTH)
        assert run.completion.guessed_tokens == run.completion.agreed_tokens > LENGTH // 2
        for cut in range(1, 8):  # an end token wherever an emission may be
            ends = (backbone.answer[cut],)
            stopped = answer(llm, Sampling(max_tokens=LENGTH, ignore_eos=True, stop_token_ids=ends))
            assert stopped.tokens == list(backbone.answer[: backbone.answer.index(ends[0]) + 1])
            assert stopped.completion.finish_reason == "stop"


def test_heads_that_are_wrong_stand_between_the_models_own_tokens(backbone: Backbone, tmp_path: Path) -> None:
    with load(engine_of(backbone, tmp_path, stubborn, tau=0.3), threads=1) as llm:
        run = answer(llm)
    with load(backbone.engine, threads=1) as llm:
        own = llm.logits([*PROMPT, *run.tokens])[len(PROMPT) - 1 : -1].argmax(-1)
    first = np.arange(LENGTH) % WIDTH == 0
    tokens = np.array(run.tokens)
    assert (tokens[~first] == STRANGER).all()
    np.testing.assert_array_equal(tokens[first], own[first])
    assert STRANGER not in tokens[first]
    # every step emits three tokens, of which the next one brings all; the end cuts two of the last three
    assert run.brought == [len(PROMPT)] + [WIDTH] * (LENGTH // WIDTH)
    assert LENGTH % WIDTH == 1


@pytest.mark.parametrize("verify", [False, True])
def test_the_cache_is_that_of_one_prefill(verify: bool, backbone: Backbone, tmp_path: Path) -> None:
    """Keys and values are those of the tokens that stand; guesses that were taken back leave nothing."""
    with load(engine_of(backbone, tmp_path, None, tau=0.01, verify=verify), threads=1) as llm:
        run = answer(llm)
    assert run.completion.guessed_tokens > run.completion.agreed_tokens  # some were wrong
    assert verify or run.held == [0, *np.cumsum(run.brought)[:-1]]  # what stands is fed once
    tokens = np.array([*PROMPT, *run.tokens])[: run.held[-1]]
    assert len(tokens) > LENGTH
    _, expected = run_decoder(backbone.engine, backbone.manifest, tokens, (len(tokens),))
    for got, wanted in zip(run.pools, expected, strict=True):
        np.testing.assert_allclose(got[0][: len(tokens)], wanted[0], atol=2e-5)
        np.testing.assert_allclose(got[1][: len(tokens)], wanted[1], atol=2e-5)


def test_requests_in_flight_together_get_what_they_get_alone(backbone: Backbone, tmp_path: Path) -> None:
    """Unchecked guesses, so that one token's difference would go on to the end."""
    rng = np.random.default_rng(4)
    prompts = [rng.integers(3, 250, n).tolist() for n in (3, 131, 40, 17)]
    with load(engine_of(backbone, tmp_path, None, tau=0.4), threads=1, prefix_reuse=False) as llm:
        alone = [llm.generate([prompt], GREEDY)[0] for prompt in prompts]
        together = llm.generate(prompts, GREEDY)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert len({c.guessed_tokens for c in alone}) > 1
