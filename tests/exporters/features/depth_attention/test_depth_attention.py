"""Tests of Depth-Attention end to end: the config, the reference in PyTorch, and engines against it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from enginewright.exporters.build import build
from enginewright.exporters.features.depth_attention.reference import (
    Base,
    add_depth_attention,
    mix_by_softmax,
    mix_evenly,
)
from enginewright.exporters.features.depth_attention.rule import DepthAttention, DepthMixer, Mix, read_depth_attention
from enginewright.exporters.methods.kvarn import Config
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.parity import compare
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.exporters.source.reference import load_reference
from enginewright.plugins.oracles.depth_mix import depth_mix
from enginewright.runtime import Sampling
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.cli import main
from enginewright.runtime.errors import ExportError, UnsupportedError
from enginewright.runtime.loader import load
from tests.support.exporters.adapters import random_adapter
from tests.support.exporters.depth_step import run_decoder
from tests.support.exporters.families import make_model, save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker
from tests.support.exporters.kvarn_reference import oracle_logits

LAYERS, GAIN = 5, 3.0  # the gain makes keys differ enough for weights to be uneven
DEPTH = {"stride": 2, "recent": 0}
EXACT = Recipe(kv_bits=32, max_batch=4)
TOKENS = torch.arange(3, 43)[None] * 5 % 250


def config(**keys: Any) -> PreTrainedConfig:
    """A qwen2 config with these keys and LAYERS layers."""
    made: PreTrainedConfig = AutoConfig.for_model("qwen2", **{"num_hidden_layers": LAYERS, **keys})
    return made


def save(path: Path, family: str = "qwen2", depth: dict[str, int] | None = None, **changes: Any) -> Path:
    """A checkpoint of LAYERS layers whose config asks for Depth-Attention."""
    save_checkpoint(family, path, gain=GAIN, num_hidden_layers=LAYERS, depth_attention=depth or DEPTH, **changes)
    return path


def logits(family: str, *, base: Base = "eager", mix: Mix | None = mix_by_softmax, **changes: Any) -> torch.Tensor:
    """Logits of the family's model, with Depth-Attention unless mix is None."""
    model = make_model(family, gain=GAIN, num_hidden_layers=LAYERS, **changes)
    model.set_attn_implementation(base)
    if mix is not None:
        add_depth_attention(model, DepthAttention(**DEPTH, layers=LAYERS), base=base, mix=mix)
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return result


@pytest.mark.parametrize(("layers", "stride", "count"), [(48, 24, 117), (24, 12, 57), (32, 16, 77)])
def test_sources_are_as_many_as_the_paper_counts(layers: int, stride: int, count: int) -> None:
    depth = DepthAttention(stride=stride, recent=0, layers=layers)
    assert sum(len(depth.sources(layer)) + 1 for layer in range(1, layers)) == count
    assert depth.sources(0) == ()
    assert depth.sources(stride) == (0,) and depth.sources(stride + 1) == (0, stride)


def test_sources_near_and_far() -> None:
    first_only = DepthAttention(stride=LAYERS, recent=0, layers=LAYERS)
    assert [first_only.sources(layer) for layer in range(LAYERS)] == [(), (0,), (0,), (0,), (0,)]
    assert DepthAttention(stride=9, recent=0, layers=LAYERS).sources(4) == (0,)
    assert DepthAttention(stride=1, recent=0, layers=LAYERS).sources(4) == (0, 1, 2, 3)
    assert DepthAttention(stride=3, recent=1, layers=8).sources(7) == (0, 3, 6)
    assert DepthAttention(stride=3, recent=2, layers=8).sources(6) == (0, 3, 4, 5)


@pytest.mark.parametrize(
    ("keys", "stride", "recent"),
    [
        ({"depth_attention": {"stride": 2}}, 2, 0),
        ({"depth_attention": {"stride": 3, "recent": 4}}, 3, 4),
        ({"use_depth_attention": True, "depth_attention_stride": 2, "depth_attention_recent_window": 1}, 2, 1),
        ({"cross_layer_mode": "depth_softmax", "depth_softmax_stride": 4, "depth_recent_window": 0}, 4, 0),
        ({"cross_layer_pattern": "depth_attention", "depth_attention_stride": 4}, 4, 0),
        ({"depth_attention": {"stride": 2}, "use_depth_attention": True, "depth_attention_stride": 2}, 2, 0),
    ],
)
def test_what_a_config_asks_for(keys: dict[str, Any], stride: int, recent: int) -> None:
    assert read_depth_attention(config(**keys)) == DepthAttention(stride=stride, recent=recent, layers=LAYERS)


@pytest.mark.parametrize(
    "keys", [{}, {"depth_attention": None}, {"use_depth_attention": False, "depth_attention_stride": 2}]
)
def test_other_models_are_left_alone(keys: dict[str, Any]) -> None:
    assert read_depth_attention(config(**keys)) is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"depth_attention": {"stride": 0}}, "depth_attention.stride: got 0, expected a whole number from 1"),
        ({"depth_attention": {"stride": 2.5}}, "depth_attention.stride: got 2.5, expected a whole number"),
        ({"depth_attention": {"stride": True}}, "depth_attention.stride: got True"),
        ({"depth_attention": {"stride": 2, "recent": -1}}, "depth_attention.recent: got -1, expected a whole number from 0"),
        ({"depth_attention": {"stride": 2, "recent": 5}}, "recent: got 5, expected at most 4: the last of 5 layers"),
        ({"depth_attention": {}}, "depth_attention: got no stride, expected one; half the number of layers"),
        ({"depth_attention": {"stride": 2, "layers": [9]}}, "unknown key 'layers'; known: stride, recent"),
        ({"depth_attention": 2}, r"depth_attention: got 2, expected \{\"stride\": N"),
        ({"use_depth_attention": True}, "depth_attention: got no stride"),
        (
            {"depth_attention": {"stride": 2}, "use_depth_attention": True, "depth_attention_stride": 3},
            "keep one of the two",
        ),
    ],
)  # fmt: skip
def test_configs_that_cannot_be(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        read_depth_attention(config(**keys))
    save_checkpoint("qwen2", tmp_path / "model", num_hidden_layers=LAYERS)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    with pytest.raises(ExportError, match=message):
        build(str(tmp_path / "model"), tmp_path / "engine", EXACT, "onnxruntime")
    assert not (tmp_path / "engine").exists()


def test_the_authors_own_norms_are_refused() -> None:
    keys = {"use_depth_attention": True, "depth_attention_stride": 2, "use_qk_norm": True}
    with pytest.raises(UnsupportedError, match="llama: use_qk_norm asks for norms of query and key"):
        read_depth_attention(AutoConfig.for_model("llama", **keys))
    assert read_depth_attention(AutoConfig.for_model("qwen3", **keys)) is not None


def test_layers_of_other_heads_are_refused() -> None:
    mixer = DepthMixer(DepthAttention(stride=1, recent=0, layers=3), mix_evenly)
    mixer(0, torch.zeros(1, 4, 5, 8), torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8), 1.0)
    with pytest.raises(UnsupportedError, match=r"layer 1 has keys and values of shape \[1, 4, 5, 8\].*layer 0, \[1, 2"):
        mixer(1, torch.zeros(1, 4, 5, 8), torch.zeros(1, 4, 5, 8), torch.zeros(1, 4, 5, 8), 1.0)
    with pytest.raises(UnsupportedError, match="layer 2 got no values of layer 1, expected it to run first"):
        mixer(2, torch.zeros(1, 4, 5, 8), torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8), 1.0)


@pytest.mark.parametrize("sources", [1, 3])
def test_the_reference_mixes_as_the_oracle(sources: int) -> None:
    generator = torch.Generator().manual_seed(sources)
    query, *rest = (torch.randn(2, h, 7, 16, generator=generator) for h in (6, *[2] * (2 * sources + 2)))
    pairs = list(zip(rest[2::2], rest[3::2], strict=True))
    got = mix_by_softmax(query, rest[0], rest[1], pairs, 0.25)
    for row in range(2):
        q, *others = (x[row].transpose(0, 1).numpy() for x in (query, *rest))
        wanted, _ = depth_mix(q, others[0], others[1], others[2::2], others[3::2])
        np.testing.assert_allclose(got[row].transpose(0, 1).numpy(), wanted, atol=1e-6)


def test_gradients_flow_through_every_source() -> None:
    query, key, value, k0, v0 = (torch.randn(1, 2, 3, 8, requires_grad=True) for _ in range(5))
    mix_by_softmax(query, key, value, [(k0, v0)], 0.3).square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (query, key, value, k0, v0))


def test_the_reference_in_a_model() -> None:
    plain, mixed = logits("qwen2", mix=None), logits("qwen2")
    assert (mixed - plain).abs().max() > 0.05
    torch.testing.assert_close(logits("qwen2", base="sdpa"), mixed, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits("qwen2", mix=lambda q, k, v, sources, scale: v), plain, atol=0, rtol=0)
    assert (logits("qwen2", mix=mix_evenly) - mixed).abs().max() > 0.01


def test_a_pass_is_the_recursion_of_the_paper() -> None:
    """Sources bring the values that they mixed themselves; a second pass starts anew."""
    generator = torch.Generator().manual_seed(0)
    mixer, done = DepthMixer(DepthAttention(**DEPTH, layers=LAYERS), mix_by_softmax), {}
    for _ in range(2):
        layers = [[torch.randn(1, h, 3, 8, generator=generator) for h in (4, 2, 2)] for _ in range(LAYERS)]
        plain = [[x[0].transpose(0, 1).numpy() for x in layer] for layer in layers]
        for layer, sources in enumerate(((), (0,), (0,), (0, 2), (0, 2))):
            keys, values = [plain[j][1] for j in sources], [done[j] for j in sources]
            done[layer], _ = depth_mix(*plain[layer], keys, values)
            got = mixer(layer, *layers[layer], 8**-0.5)
            np.testing.assert_allclose(got[0].transpose(0, 1).numpy(), done[layer], atol=1e-6)


def test_the_reference_refuses_a_cache() -> None:
    model = make_model("qwen2", num_hidden_layers=LAYERS)
    add_depth_attention(model, DepthAttention(**DEPTH, layers=LAYERS))
    with torch.no_grad():
        past = model(input_ids=TOKENS, use_cache=True).past_key_values
        with pytest.raises(UnsupportedError, match=r"got 1 tokens with a cache of 41, expected whole sequences"):
            model(input_ids=TOKENS[:, :1], past_key_values=past)


@dataclass(frozen=True)
class Built:
    """A checkpoint and its engine."""

    model: Path
    engine: Path
    manifest: Manifest

    @property
    def nodes(self) -> list[ir.Node]:
        """The nodes of the optimised graph."""
        return list(ir.load(self.engine / self.manifest.graphs["decoder"].engines[0].files[0].path).graph)


def built(path: Path, recipe: Recipe = EXACT, **options: Any) -> Built:
    """An engine of a checkpoint that `save` makes."""
    model = save(path / "model", **options)
    return Built(model, path / "engine", build(str(model), path / "engine", recipe, "onnxruntime"))


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The engine that most tests use, of qwen2."""
    return built(tmp_path_factory.mktemp("qwen2"))


CASES: list[tuple[str, dict[str, int]]] = [
    ("qwen2", {"stride": 1}),
    ("qwen3", {"stride": 7}),
    ("llama", {"stride": 3, "recent": 1}),
    ("phi3", {"stride": 2, "recent": 2}),
    ("mistral", {"stride": 2}),  # windows
    ("gemma2", {"stride": 2}),  # windows, softcap, another scale of attention
]


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(("family", "depth"), CASES)
def test_engine_equals_model(family: str, depth: dict[str, int], tmp_path: Path) -> None:
    made = built(tmp_path, family=family, depth=depth)
    rule = DepthAttention(**{"recent": 0, **depth}, layers=LAYERS)
    inputs = [len(node.inputs) for node in made.nodes if node.op_type == "DepthMix"]
    assert inputs == [3 + 2 * len(rule.sources(layer)) for layer in range(1, LAYERS)]
    with load(made.engine, threads=1, prefill_chunk=64) as llm:  # uneven prompts in flight, in chunks
        parity = compare(llm, load_reference(str(made.model), ()), new_tokens=60)
    assert parity.logit_range > 1
    assert parity.max_error < 2e-5  # float32 sums in another order
    assert not parity.unexplained


@pytest.mark.native
@pytest.mark.slow
def test_the_command_checks_it(qwen2: Built, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", str(qwen2.engine), "--model", str(qwen2.model), "--new-tokens", "20", "--threads", "1"]
    assert main(arguments) == 0
    assert "passed" in capsys.readouterr().out


@pytest.mark.native
@pytest.mark.slow
def test_the_graph_is_as_lean_as_without(qwen2: Built, checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    """One node for each layer after the first; query, key and value still come from one node."""
    root, manifest = engine(checkpoint("qwen2"), EXACT)
    plain = Counter(node.op_type for node in Built(root, root, manifest).nodes)
    mixed = Counter(node.op_type for node in qwen2.nodes)
    per_layer = {name: count // 2 for name, count in plain.items() if count > 1 and not count % 2}
    assert mixed.pop("DepthMix") == LAYERS - 1
    assert mixed["SplitQkv"] == LAYERS
    assert mixed.keys() == plain.keys()
    assert all(mixed[name] - plain[name] in (0, (LAYERS - 2) * each) for name, each in per_layer.items())
    assert qwen2.manifest.graphs["decoder"].ops == {"DepthMix": 1, "GreedySample": 1, "PagedAttention": 1}


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("chunks", [(150,), (1,) * 150, (128, 1, 21)], ids=["whole", "one_by_one", "uneven"])
def test_the_cache_holds_mixed_values(chunks: tuple[int, ...], qwen2: Built) -> None:
    """With any chunks, logits, keys and values are those of the whole sequence without a cache."""
    tokens = np.random.default_rng(0).integers(3, 250, sum(chunks))
    keys, values, expected = full_recompute(str(qwen2.model), tokens)
    got, pools = run_decoder(qwen2.engine, qwen2.manifest, tokens, chunks)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    for layer, (key, value) in enumerate(pools):
        np.testing.assert_allclose(key, keys[layer], atol=2e-5)
        np.testing.assert_allclose(value, values[layer], atol=2e-5)


@pytest.mark.native
@pytest.mark.slow
def test_memory_is_that_of_a_model_without_it(qwen2: Built, tmp_path: Path) -> None:
    """The model has the same parameters and the same bytes of cache as one without; up to the first mixed layer also the same keys and values."""
    config = json.loads((qwen2.model / "config.json").read_text())
    assert config.pop("depth_attention") == DEPTH
    shutil.copytree(qwen2.model, tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    plain = build(str(tmp_path / "model"), tmp_path / "engine", EXACT, "onnxruntime")
    assert plain.model.parameters == qwen2.manifest.model.parameters
    assert plain.cache == qwen2.manifest.cache
    assert weights_of(tmp_path / "engine", plain) == weights_of(qwen2.engine, qwen2.manifest)
    tokens = np.arange(40)
    (logits, pools), (others, mixed) = (
        run_decoder(root, manifest, tokens, (40,))
        for root, manifest in ((tmp_path / "engine", plain), (qwen2.engine, qwen2.manifest))
    )
    np.testing.assert_array_equal(mixed[0][0], pools[0][0])
    np.testing.assert_array_equal(mixed[0][1], pools[0][1])  # layer 0 has no sources
    np.testing.assert_array_equal(mixed[1][0], pools[1][0])  # keys are of the same states, and stay what they are
    assert np.abs(mixed[1][1] - pools[1][1]).max() > 0.01
    assert np.abs(others - logits).max() > 0.05


def weights_of(root: Path, manifest: Manifest) -> dict[str, tuple[Any, ...]]:
    """Type, shape and bytes of each initializer that lies outside of the graph file; every weight does."""
    found = ir.load(root / manifest.graphs["decoder"].files[0].path).graph.initializers.values()
    tensors = [(each.name, each.const_value) for each in found]
    return {name: (x.dtype, tuple(x.shape), x.tobytes()) for name, x in tensors if isinstance(x, ir.ExternalTensor)}


def test_the_reference_keeps_the_parameters() -> None:
    model = make_model("qwen2", num_hidden_layers=LAYERS)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    add_depth_attention(model, DepthAttention(**DEPTH, layers=LAYERS))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def full_recompute(model: str, tokens: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Keys and mixed values [T, Hkv, D] of each layer, and logits [T, V], of the reference."""
    reference = load_reference(model, ())
    keys, values = [], []

    class Recorder(DepthMixer):
        def __call__(self, layer: int, q: Any, k: Any, v: Any, scale: float) -> torch.Tensor:
            mixed = super().__call__(layer, q, k, v, scale)
            keys.append(k[0].transpose(0, 1).numpy())
            values.append(mixed[0].transpose(0, 1).numpy())
            return mixed

    recorder = Recorder(DepthAttention(**DEPTH, layers=LAYERS), mix_by_softmax)
    for module in reference.modules():
        if hasattr(module, "depth_mixer"):
            module.depth_mixer = recorder
    with torch.no_grad():
        result = reference(input_ids=torch.tensor(tokens)[None], use_cache=False).logits[0].numpy()
    return keys, values, result


@pytest.mark.native
@pytest.mark.slow
def test_neighbours_and_reused_prompts_change_nothing(qwen2: Built) -> None:
    """Sources are of the step's own tokens: tiles that another request computed need nothing special."""
    rng = np.random.default_rng(3)
    shared = rng.integers(3, 250, 140).tolist()
    prompts = [shared[:n] + rng.integers(3, 250, m).tolist() for n, m in ((0, 5), (140, 30), (130, 9))]
    sampling = Sampling(max_tokens=40, ignore_eos=True)
    with load(qwen2.engine, threads=1, prefill_chunk=64, prefix_reuse=False) as llm:
        alone = [llm.generate([prompt], sampling)[0] for prompt in prompts]
    with load(qwen2.engine, threads=1, prefill_chunk=64) as llm:
        together = llm.generate(prompts, sampling)
        again = llm.generate(prompts, sampling)
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    assert [each.token_ids for each in again] == [each.token_ids for each in alone]
    assert again[1].reused_tokens == 128


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_values_are_mixed_before_kvarn_encodes_them(family: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"sliding_window": 150} if family == "gemma2" else {}
    recipe = dataclasses.replace(EXACT, kv_bits=16, apply=(Applied("kvarn", Config()),))
    made = built(tmp_path, recipe, family=family, **changes)
    rotate = {node.attributes.get_int("rotate_values", 1) for node in made.nodes if node.op_type == "KVarNAttention"}
    assert rotate == {1}, "a rotation in one layer's weights would mix with sources that are not rotated"
    tokens = np.random.default_rng(1).integers(3, 250, 430).tolist()
    reference = make_model(family, gain=GAIN, num_hidden_layers=LAYERS, **changes)
    mixer = DepthMixer(DepthAttention(**DEPTH, layers=LAYERS), mix_by_softmax)
    expected = oracle_logits(reference, tokens, Config(), mixer)
    unmixed = oracle_logits(reference, tokens, Config())
    with load(made.engine, threads=1) as llm:
        got = llm.logits(tokens)
    error, effect = np.abs(got - expected).max(), np.abs(unmixed - expected).max()
    assert error < 0.1 * effect  # sums in another order round a few codes the other way


@pytest.mark.native
@pytest.mark.slow
def test_adapters_are_merged_first(tmp_path: Path) -> None:
    reference = make_model("llama", gain=GAIN, num_hidden_layers=LAYERS)
    modules = {f"model.layers.{i}.self_attn.{p}_proj" for i in range(LAYERS) for p in "qkv"}
    adapter = random_adapter(reference, modules).save(tmp_path / "adapter")
    applied = (parse_method(f"lora:path={adapter}"),)
    made = built(tmp_path, dataclasses.replace(EXACT, apply=applied), family="llama")
    with load(made.engine, threads=1) as llm:
        merged = compare(llm, load_reference(str(made.model), applied), new_tokens=20)
        without = compare(llm, load_reference(str(made.model), ()), new_tokens=20)
    assert merged.max_error < 2e-5
    assert without.max_error > 0.05
