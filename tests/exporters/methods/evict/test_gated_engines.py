"""Engines that evict by trained gates of tokens, or keep everything in some heads: what they keep, and that rows are as alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from enginewright.exporters.features.depth_attention.reference import add_depth_attention
from enginewright.exporters.features.depth_attention.rule import DepthAttention
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import LLM, Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.cache.policies.scores import retention
from enginewright.runtime.cache.policies.select import keep
from enginewright.runtime.cache.policy import governed_layers
from enginewright.runtime.cli import main
from tests.support.exporters.families import make_model, save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker
from tests.support.exporters.gate_files import gate_tensors, write_head_gates, write_token_gates
from tests.support.exporters.masked_reference import Evictions, masked_logits, recorded

pytestmark = pytest.mark.native

GREEDY = Sampling(max_tokens=120, ignore_eos=True)
SMALL = "budget=40,interval=16"
LENGTH = 300
HEADS = {"qwen3": ((0.9, 0.1), (0.2, 0.1)), "gemma3_text": (None, (0.3, 0.6))}
Make = Callable[..., Path]


def text_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 250, length).tolist()


@pytest.fixture(scope="module")
def gated(checkpoint: CheckpointMaker, engine: EngineMaker, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Builds an engine with the score trim, or with the allocation duo."""
    folder = tmp_path_factory.mktemp("gates")

    def make(kind: str, family: str = "qwen3", options: str = SMALL) -> Path:
        model = checkpoint(family, gain=3.0)
        if kind == "trim":
            given = f"score=trim,gates={write_token_gates(model, folder / f'{family}.safetensors')}"
        else:
            path = write_head_gates(model, folder / f"{family}.json", HEADS[family])
            given = f"allocation=duo,sinks=6,sparsity=0.75,head_gates={path}"
        method = parse_method(f"evict:{options},{given}")
        return engine(model, Recipe(apply=(method,), kv_bits=32, max_context=512))[0]

    return make


def scored(root: Path) -> tuple[np.ndarray, Evictions, tuple[int, ...]]:
    """A text's logits, what was evicted on the way, and the layers that evict."""
    with load(root, 1, max_batch=1) as llm, recorded(llm) as evictions:
        return llm.logits(text_of(LENGTH)), evictions, governed_layers(llm.manifest.cache)


def log_betas(model: PreTrainedModel, run: Callable[[], object]) -> list[np.ndarray]:
    """Each layer's gates [H, T] in torch, by what its attention reads in `run`."""
    gates, found = gate_tensors(model.config), {}
    layers = model.base_model.layers

    def watch(layer: int) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
            states = inputs[0] if inputs else named["hidden_states"]
            parts = ("linear1.weight", "linear1.bias", "linear2.weight", "bias")
            w1, b1, w2, b2 = (
                torch.from_numpy(gates[f"model.layers.{layer}.self_attn.retention_gate.{part}"]).double()
                for part in parts
            )
            hidden = torch.nn.functional.silu(states[0].double() @ w1.T + b1)
            found[layer] = torch.nn.functional.logsigmoid(hidden @ w2.T + b2).T.detach().numpy()

        return hook

    hooks = [
        each.self_attn.register_forward_pre_hook(watch(layer), with_kwargs=True) for layer, each in enumerate(layers)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return [found[layer] for layer in range(len(layers))]


@pytest.mark.parametrize(
    "family",
    [
        "qwen3",
        pytest.param("phi3", marks=pytest.mark.slow),  # packed projections
        pytest.param("gpt_oss", marks=pytest.mark.slow),  # a window next to a global layer, and sinks
    ],
)
def test_trim_keeps_what_gates_in_torch_say(family: str, gated: Make) -> None:
    """The model is masked by what the engine kept; its own states then give gates, and those the tokens to keep."""
    got, evictions, layers = scored(gated("trim", family))
    model = make_model(family, gain=3.0)
    wanted: list[np.ndarray] = []
    betas = log_betas(model, lambda: wanted.append(masked_logits(model, text_of(LENGTH), evictions, layers)))
    assert np.abs(got - wanted[0]).max() <= 2e-4 * np.abs(wanted[0]).max()
    assert len(evictions) > 10
    held = [[np.zeros(0, np.int64)] * len(betas[layer]) for layer in layers]
    last = 0
    for time, kept in evictions:
        for index, layer in enumerate(layers):
            for head, beta in enumerate(betas[layer]):
                stored = np.concatenate([held[index][head], np.arange(last, time)])
                scores = retention(beta[stored], stored, time + 1)[: len(stored) - 8]
                assert kept[index][head].tolist() == stored[keep(scores, 40, 8)].tolist()
        held, last = kept, time


@pytest.mark.parametrize(
    ("family", "whole"),
    [("qwen3", [[0], []]), pytest.param("gemma3_text", [[1]], marks=pytest.mark.slow)],
)
def test_duo_keeps_all_in_some_heads_and_the_ends_in_others(family: str, whole: list[list[int]], gated: Make) -> None:
    got, evictions, layers = scored(gated("duo", family))
    wanted = masked_logits(make_model(family, gain=3.0), text_of(LENGTH), evictions, layers)
    assert np.abs(got - wanted).max() <= 2e-4 * np.abs(wanted).max()
    assert [time for time, _ in evictions] == list(range(48, LENGTH, 16))
    for time, kept in evictions:
        for index, layer in enumerate(kept):
            for head, positions in enumerate(layer):
                ends = [*range(6), *range(time - 34, time)]
                assert positions.tolist() == (list(range(time)) if head in whole[index] else ends)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rkv", "trim", "duo"])
def test_depth_attention(kind: str, engine: EngineMaker, tmp_path: Path) -> None:
    """Values are mixed before they are stored, so what is evicted is the mixed value; gates read what attention reads."""
    depth = {"stride": 2, "recent": 0}
    made = {"gain": 3.0, "num_hidden_layers": 5, "depth_attention": depth}
    save_checkpoint("qwen2", tmp_path / "model", **made)
    given = {"rkv": "score=rkv"}
    if kind == "trim":
        given[kind] = f"score=trim,gates={write_token_gates(tmp_path / 'model', tmp_path / 'gates.safetensors')}"
    if kind == "duo":
        gates = [(0.1 * layer, 0.5) for layer in range(5)]
        path = write_head_gates(tmp_path / "model", tmp_path / "heads.json", gates)
        given[kind] = f"allocation=duo,sinks=6,head_gates={path}"
    method = parse_method(f"evict:{SMALL},{given[kind]}")
    root, manifest = engine(tmp_path / "model", Recipe(apply=(method,), kv_bits=32, max_context=512))
    assert "DepthMix" in manifest.graphs["decoder"].ops
    got, evictions, layers = scored(root)
    model = make_model("qwen2", **{**made, "depth_attention": None})
    add_depth_attention(model, DepthAttention(**depth, layers=5))
    mixing = ALL_ATTENTION_FUNCTIONS["enginewright_depth_eager"]
    wanted = masked_logits(model, text_of(LENGTH), evictions, layers, mixing)
    assert len(evictions) > 10 and np.abs(got - wanted).max() <= 5e-4 * np.abs(wanted).max()


def generate(llm: LLM, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [each.token_ids for each in llm.generate(prompts, GREEDY)]


PROMPTS = [text_of(150), text_of(30, 1), text_of(200, 2), text_of(64, 3)]
KINDS = pytest.mark.parametrize("kind", ["trim", pytest.param("duo", marks=pytest.mark.slow)])


@KINDS
def test_rows_are_as_alone(kind: str, gated: Make) -> None:
    root = gated(kind)
    with load(root, 1, max_batch=1, prefix_reuse=False) as llm:
        wanted = [generate(llm, [prompt])[0] for prompt in PROMPTS]
    with load(root, 1, max_batch=4, prefill_chunk=48) as llm:
        assert generate(llm, PROMPTS) == wanted
        assert generate(llm, PROMPTS) == wanted, "with what the first ones left in the prefix cache"
    with load(root, 1, max_batch=4, cache_tokens=512) as llm:
        scheduler, preempted = llm.loop.scheduler, set[int]()
        llm.loop.observer = lambda _: preempted.update(
            each.request.length for each in scheduler.waiting if each.request.length > each.request.prompt_tokens
        )
        assert generate(llm, PROMPTS) == wanted
    assert preempted


@KINDS
def test_prompts_share_tiles_with_what_gates_say_of_them(kind: str, gated: Make) -> None:
    prompt = text_of(280)
    with load(gated(kind), 1, max_batch=2) as llm:
        first, second = (llm.generate([prompt], GREEDY)[0] for _ in range(2))
    assert first.token_ids == second.token_ids and (first.reused_tokens, second.reused_tokens) == (0, 256)


@KINDS
def test_within_the_budget_tokens_are_those_without_a_policy(
    kind: str, gated: Make, checkpoint: CheckpointMaker, engine: EngineMaker
) -> None:
    plain, _ = engine(checkpoint("qwen3", gain=3.0), Recipe(kv_bits=32, max_context=512))
    prompts = [text_of(100), text_of(33, 1)]
    with load(gated(kind, options="budget=512"), 1) as llm, load(plain, 1) as other:
        assert generate(llm, prompts) == generate(other, prompts)


def test_marks_are_the_gates_of_stored_tokens(gated: Make) -> None:
    tokens = text_of(30)
    with load(gated("trim"), 1, max_batch=1) as llm:
        loop = llm.loop
        loop.scheduler.submit(loop.scheduler.decoder.start(llm._generation(tokens, None)))
        loop.step()
        marks = loop.session.marks(loop.scheduler.tables._stored_row(0))  # type: ignore[attr-defined]
    assert [each.shape for each in marks] == [(2, 1, 30)] * 2
    model = make_model("qwen3", gain=3.0)
    betas = log_betas(model, lambda: model(torch.tensor([tokens])))
    for own, beta in zip(marks, betas, strict=True):
        np.testing.assert_allclose(-np.logaddexp(0, -own[:, 0].astype(np.float64)), beta, rtol=1e-3, atol=1e-6)


def test_what_the_engines_say_of_themselves(gated: Make) -> None:
    trim, duo = directory.load(gated("trim")), directory.load(gated("duo"))
    assert trim.cache.policy == {"kind": "evict", "score": "trim", "budget": 40, "interval": 16}
    assert set(trim.graphs) == set(duo.graphs) == {"decoder", "compact"}
    assert [(each.held_queries, each.marks) for each in trim.cache.layers] == [(0, 1)] * 2
    wanted = {"score": "streaming", "budget": 40, "interval": 16, "sinks": 6, "allocation": "duo", "whole": [[0], []]}
    assert duo.cache.policy == {"kind": "evict", **wanted}
    assert [(each.held_queries, each.marks) for each in duo.cache.layers] == [(0, 0)] * 2


def test_inspect_counts_whole_heads_at_the_length_of_a_request(gated: Make, capsys: pytest.CaptureFixture[str]) -> None:
    root = gated("duo")
    tile = directory.load(root).cache.layers[0].tile_bytes
    assert main(["inspect", str(root), "--json"]) == 0
    cache = json.loads(capsys.readouterr().out)["cache"]
    assert (cache["evicting"]["heads"], cache["evicting"]["whole_heads"]) == (4, 1)
    assert cache["evicting"]["tokens_per_head"] == [40, 40]
    assert cache["evicting"]["bytes_per_request"] == (4 + 1 + 1 + 1) * tile, "512 tokens in one of four heads"
    assert cache["requests"] == (2**30 - cache["evicting"]["copies_bytes"]) // (7 * tile)
    assert main(["inspect", str(root)]) == 0
    assert "keeps 40 tokens of 3 of 4 heads, and all of the others\n" in capsys.readouterr().out
    assert main(["inspect", str(gated("trim"))]) == 0
    assert "16 bytes per token for marks\n" in capsys.readouterr().out, "a number for each of four heads"
