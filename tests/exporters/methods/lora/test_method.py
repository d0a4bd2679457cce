"""Tests of merged adapters against forward hooks that add scaling * B(A x) to the eager model, and of refusals."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from enginewright.exporters.methods.lora import Config
from enginewright.exporters.methods.registry import Applied, transform_weights
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.weights.weight import QuantizedRows, Weight, quantized_weight
from enginewright.runtime.artifact.adapters.settings import NO_MERGE, USED, WITHOUT_EFFECT
from enginewright.runtime.artifact.adapters.settings import REFUSED as REFUSED_KEYS
from enginewright.runtime.errors import EnginewrightError, ExportError, UnsupportedError
from enginewright.runtime.loader import load
from tests.support.exporters.adapted import Base, make_base, merge
from tests.support.exporters.adapters import Adapter, random_adapter
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker

# Merging changes the order of float32 sums: W x + s B (A x) against (W + s B A) x. Logits reach 0.5 here.
TOLERANCE = 2e-6
TOKENS = torch.arange(3, 43)[None] * 5 % 250

ATTENTION = {f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"}
MLP = {f"model.layers.{i}.mlp.{p}_proj" for i in range(2) for p in ("gate", "up", "down")}


def hooked(model: PreTrainedModel, *applied: tuple[Adapter, Callable[[str, int], float]]) -> np.ndarray:
    """Logits of the model with each adapter's scaling(module, rank) * B(A x) added to its modules' outputs."""
    handles = []
    for adapter, scaling in applied:
        for name, (a, b) in adapter.pairs.items():

            def add(
                _: Any, inputs: Any, output: torch.Tensor, a: Any = a, b: Any = b, s: float = scaling(name, len(a))
            ) -> torch.Tensor:
                return output + s * (inputs[0] @ a.T @ b.T)

            handles.append(model.get_submodule(name).register_forward_hook(add))
    with torch.no_grad():
        logits: np.ndarray = model(input_ids=TOKENS).logits.numpy()
    for handle in handles:
        handle.remove()
    return logits


def merged_logits(base: Base, *configs: Config) -> np.ndarray:
    """Logits of the base's model with merged weights."""
    model, merged = copy.deepcopy(base.model), merge(base, *configs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(merged[name].load())))
        logits: np.ndarray = model(input_ids=TOKENS).logits.numpy()
    return logits


@pytest.fixture(scope="module")
def base(checkpoint: CheckpointMaker) -> Base:
    """A model with an output projection of its own."""
    return make_base("llama", checkpoint("llama"))


@pytest.fixture(scope="module")
def tied(checkpoint: CheckpointMaker) -> Base:
    """A model whose output projection is its embedding."""
    return make_base("qwen2", checkpoint("qwen2"))


CASES: dict[str, tuple[set[str], dict[str, Any], dict[str, int], Callable[[str, int], float]]] = {
    "plain": (ATTENTION | MLP, {}, {}, lambda _, r: 8 / r),
    "one module": ({"model.layers.1.mlp.down_proj"}, {}, {}, lambda _, r: 8 / r),
    "output projection": ({"lm_head"}, {}, {}, lambda _, r: 8 / r),
    "rank-stabilised": (ATTENTION, {"use_rslora": True}, {}, lambda _, r: 8 / math.sqrt(r)),
    "ranks by pattern": (ATTENTION, {"rank_pattern": {"q_proj": 7, "o_proj": 1}}, {"q_proj": 7, "o_proj": 1}, lambda _, r: 8 / r),
    "alphas by pattern": (
        ATTENTION,
        {"alpha_pattern": {"q_proj": 32, r"layers\.1\.self_attn\.v_proj": 1}},
        {},
        lambda m, r: (32 if m.endswith("q_proj") else 1 if m.endswith("1.self_attn.v_proj") else 8) / r,
    ),
    "the first matching pattern wins": (ATTENTION, {"alpha_pattern": {"q_proj": 32, ".*_proj": 2}}, {}, lambda m, r: (32 if m.endswith("q_proj") else 2) / r),
    "a pattern matches whole names": (ATTENTION, {"alpha_pattern": {"proj": 32}}, {}, lambda _, r: 8 / r),
    "patterns with rank-stabilising": (
        ATTENTION,
        {"alpha_pattern": {"k_proj": 3}, "rank_pattern": {"k_proj": 2}, "use_rslora": True},
        {"k_proj": 2},
        lambda m, r: (3 if m.endswith("k_proj") else 8) / math.sqrt(r),
    ),
    "patterns of none": (ATTENTION, {"alpha_pattern": None, "rank_pattern": None, "modules_to_save": None}, {}, lambda _, r: 8 / r),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_merged_equals_hooks(case: str, base: Base, tmp_path: Path) -> None:
    modules, settings, ranks, scaling = CASES[case]
    adapter = random_adapter(base.model, modules, ranks, **settings)
    got = merged_logits(base, Config(path=str(adapter.save(tmp_path / "a"))))
    expected = hooked(base.model, (adapter, scaling))
    assert np.abs(expected - hooked(base.model)).max() > 1e-3, "the adapter must matter"
    assert np.abs(got - expected).max() < TOLERANCE


@pytest.mark.parametrize("weight", [0.5, -1.0, 0.0])
def test_weight_scales_what_is_added(weight: float, base: Base, tmp_path: Path) -> None:
    adapter = random_adapter(base.model, ATTENTION)
    got = merged_logits(base, Config(path=str(adapter.save(tmp_path / "a")), weight=weight))
    assert np.abs(got - hooked(base.model, (adapter, lambda _, r: weight * 8 / r))).max() < TOLERANCE


def test_several_adapters_add_up(base: Base, tmp_path: Path) -> None:
    first, second = random_adapter(base.model, ATTENTION), random_adapter(base.model, ATTENTION | MLP, lora_alpha=3)
    configs = Config(path=str(first.save(tmp_path / "a"))), Config(path=str(second.save(tmp_path / "b")), weight=0.5)
    expected = hooked(base.model, (first, lambda _, r: 8 / r), (second, lambda _, r: 1.5 / r))
    assert np.abs(merged_logits(base, *configs) - expected).max() < TOLERANCE


def test_half_precision_adapters(base: Base, tmp_path: Path) -> None:
    adapter = random_adapter(base.model, ATTENTION)
    adapter.pairs = {name: (a.bfloat16(), b.bfloat16()) for name, (a, b) in adapter.pairs.items()}
    got = merged_logits(base, Config(path=str(adapter.save(tmp_path / "a"))))
    adapter.pairs = {name: (a.float(), b.float()) for name, (a, b) in adapter.pairs.items()}
    assert np.abs(got - hooked(base.model, (adapter, lambda _, r: 8 / r))).max() < TOLERANCE


def test_nothing_is_computed_and_the_base_stays(base: Base, tmp_path: Path) -> None:
    weights = base.weights

    def never() -> np.ndarray:
        raise AssertionError("read while merging")

    closed = {name: Weight(shape=w.shape, dtype=w.dtype, load=never) for name, w in weights.items()}
    path = random_adapter(base.model, MLP).save(tmp_path / "a")
    merged = transform_weights((Applied("lora", Config(path=str(path))),), closed, base.checkpoint)
    assert {name for name in merged if merged[name] is not closed[name]} == {f"{module}.weight" for module in MLP}
    assert all(merged[name].shape == weight.shape for name, weight in weights.items())


def test_an_adapter_of_a_quantised_matrix_is_refused(base: Base, tmp_path: Path) -> None:
    module = min(MLP)
    rows = QuantizedRows(
        bits=4, group_size=64, load=lambda: (np.zeros((96, 64), np.int8), np.ones((96, 1), np.float32))
    )
    weights = {**base.weights, f"{module}.weight": quantized_weight((96, 64), rows)}
    path = random_adapter(base.model, {module}).save(tmp_path / "a")
    with pytest.raises(ExportError, match=f"'{module}', which is quantised by then; apply lora before"):
        merge(dataclasses.replace(base, weights=weights), Config(path=str(path)))


def test_tied_parameters_stay_tied(tied: Base, tmp_path: Path) -> None:
    adapter = random_adapter(tied.model, ATTENTION)
    config = Config(path=str(adapter.save(tmp_path / "a")))
    merged = merge(tied, config)
    assert merged["lm_head.weight"] is merged["model.embed_tokens.weight"]
    assert np.abs(merged_logits(tied, config) - hooked(tied.model, (adapter, lambda _, r: 8 / r))).max() < TOLERANCE


@pytest.mark.native
@pytest.mark.slow
def test_engine_equals_hooks(base: Base, checkpoint: CheckpointMaker, engine: EngineMaker, tmp_path: Path) -> None:
    adapter = random_adapter(base.model, ATTENTION | MLP | {"lm_head"})
    config = Config(path=str(adapter.save(tmp_path / "a")), weight=0.5)
    root, manifest = engine(checkpoint("llama"), Recipe(kv_bits=32, apply=(Applied("lora", config),)))
    assert manifest.applied == ({"name": "lora", "path": config.path, "weight": 0.5},)
    with load(root, threads=1) as llm:
        got = llm.logits(TOKENS[0].tolist())
    assert np.abs(got - hooked(base.model, (adapter, lambda _, r: 4 / r))[0]).max() < 1e-5


@pytest.fixture
def adapter_path(base: Base, tmp_path: Path) -> Iterator[Path]:
    """A whole adapter, to be damaged."""
    yield random_adapter(base.model, {"model.layers.0.self_attn.q_proj"}).save(tmp_path / "adapter")


def settings(**changes: Any) -> Callable[[Path], object]:
    """A change of adapter_config.json."""

    def change(root: Path) -> None:
        path = root / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """A change of the adapter's tensors."""

    def change(root: Path) -> None:
        path = root / "adapter_model.safetensors"
        found = load_file(path)
        edit(found)
        save_file(found, path)

    return change


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB")
EMBEDDING, HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
FILE = "adapter_model.safetensors"

REFUSED: dict[str, tuple[Callable[[Path], object], type[EnginewrightError], str]] = {
    "no directory": (shutil.rmtree, ExportError, r"adapter_config.json: not found"),
    "no config": (
        lambda r: (r / "adapter_config.json").unlink(),
        ExportError,
        r"config.json: not found; .* PEFT adapter",
    ),
    "broken config": (lambda r: (r / "adapter_config.json").write_text("{"), ExportError, r"not valid JSON"),
    "no weights": (lambda r: (r / FILE).unlink(), ExportError, rf"{FILE}: not found"),
    "pickle": (lambda r: (r / FILE).rename(r / "adapter_model.bin"), ExportError, r"adapter_model.bin is a pickle"),
    "cut off": (
        lambda r: (r / FILE).write_bytes((r / FILE).read_bytes()[:-1]),
        ExportError,
        r"not a whole safetensors",
    ),
    "empty": (tensors(lambda t: t.clear()), ExportError, rf"{FILE}: holds no adapter"),
    "another method": (settings(peft_type="IA3"), UnsupportedError, r"got peft_type 'IA3', expected 'LORA'"),
    "replicated layers": (
        settings(layer_replication=[[0, 2]]),
        UnsupportedError,
        r"layer_replication=.* cannot be merged: its model has other layers",
    ),
    "a key of a newer PEFT": (
        settings(use_more=1),
        UnsupportedError,
        r"use_more=1 cannot be merged: the key is not known",
    ),
    "a request decides": (
        settings(alora_invocation_tokens=[5]),
        UnsupportedError,
        r"acts from a token of each request",
    ),
    "samples": (settings(monteclora_config={"a": 1}), UnsupportedError, r"samples of a distribution"),
    "residual base, unknown": (
        settings(init_lora_weights="corda"),
        UnsupportedError,
        r"init_lora_weights='corda' .*base",
    ),
    "residual base, by gradients": (settings(init_lora_weights="lora_ga"), UnsupportedError, r"'lora_ga' .*base"),
    "residual base, quantised": (settings(init_lora_weights="loftq"), UnsupportedError, r"'loftq' .*base"),
    "rank of no number": (settings(r="4"), ExportError, r"r: got '4', expected a whole number of at least 1"),
    "rank of zero": (settings(r=0), ExportError, r"r: got 0, expected a whole number of at least 1"),
    "endless alpha": (settings(lora_alpha=10**400), ExportError, r"lora_alpha: got 1000.*, expected a finite number"),
    "alpha that is no number": (settings(lora_alpha=math.nan), ExportError, r"NaN, expected a finite number"),
    "broken pattern": (
        settings(rank_pattern={"(": 4}),
        ExportError,
        r"rank_pattern: got '\(', expected a regular expr",
    ),
    "patterns as a list": (settings(alpha_pattern=[4]), ExportError, r"alpha_pattern: got \[4\], expected an object"),
    "a flag that is text": (settings(use_rslora="yes"), ExportError, r"use_rslora: got 'yes', expected true or false"),
    "unknown biases": (settings(bias="some"), ExportError, r"got bias 'some', expected 'none', 'all' or 'lora_only'"),
    "modules as text": (settings(modules_to_save="lm_head"), ExportError, r"got 'lm_head', expected a list of names"),
    "tokens twice": (
        settings(trainable_token_indices=[3, 3]),
        ExportError,
        r"got \[3, 3\], expected token ids, each once",
    ),
    "another rank than trained": (settings(r=8), ExportError, r"q_proj' got rank 4, expected 8 by r and rank_pattern"),
    "whole modules that are missing": (
        settings(modules_to_save=["lm_head"]),
        ExportError,
        r"lacks 'lm_head.weight', which modules_to_save",
    ),
    "token rows that are missing": (
        settings(trainable_token_indices=[3]),
        ExportError,
        r"lacks the rows of 'the embedding' that trainable_token_indices",
    ),
    "token rows that no key names": (
        tensors(lambda t: t.update({EMBEDDING + ".token_adapter.trainable_tokens_delta": torch.ones(1, 60)})),
        ExportError,
        r"holds rows of 'model.embed_tokens', which trainable_token_indices does not name",
    ),
    "magnitudes that are missing": (settings(use_dora=True), ExportError, r"q_proj' lacks magnitudes, and .* use_dora"),
    "magnitudes that no key names": (
        tensors(lambda t: t.update({A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(60)})),
        ExportError,
        r"q_proj' has magnitudes, and .* use_dora",
    ),
    "a bias that no key names": (
        tensors(lambda t: t.update({B.replace("weight", "bias"): torch.ones(60)})),
        ExportError,
        r"q_proj' has a bias of lora_B, and .* lora_bias",
    ),
    "two adapters": (
        tensors(lambda t: t.update({k.replace(".weight", f".{k[-8]}.weight"): t.pop(k) for k in (A, B)})),
        UnsupportedError,
        r"tensors of the adapters \['A', 'B'\], expected one adapter",
    ),
    "whole numbers": (tensors(lambda t: t.update({A: t[A].to(torch.int8)})), ExportError, r"got type torch.int8"),
    "singular values of AdaLoRA": (
        tensors(lambda t: t.update({A.replace("lora_A.weight", "lora_E"): torch.ones(4, 1)})),
        UnsupportedError,
        r"lora_E' is of a kind that cannot be merged",
    ),
    "a norm": (
        tensors(lambda t: t.update({k.replace("self_attn.q_proj", "input_layernorm"): t.pop(k) for k in (A, B)})),
        UnsupportedError,
        r"adapts 'model.layers.0.input_layernorm.weight' \[60\], expected a matrix",
    ),
    "an embedding as a layer": (
        tensors(lambda t: t.update({k.replace("layers.0.self_attn.q_proj", "embed_tokens"): t.pop(k) for k in (A, B)})),
        UnsupportedError,
        r"adapts 'model.embed_tokens', a Embedding, expected a linear layer",
    ),
    "a layer as an embedding": (
        tensors(lambda t: (t.clear(), t.update({HEAD + f".lora_embedding_{s}": torch.ones(4, 4) for s in "AB"}))),
        ExportError,
        r"'lm_head' is no embedding in the model",
    ),
    "a whole parameter of another size": (
        tensors(lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(3)})),
        ExportError,
        r"'model.norm.weight' got \[3\], expected \[60\]",
    ),
    "pooled inputs": (settings(use_qalora=True), UnsupportedError, r"use_qalora=True cannot be merged"),
    "residual base, iterated": (
        settings(init_lora_weights="pissa_niter_4"),
        UnsupportedError,
        r"init_lora_weights='pissa_",
    ),
    "NaN": (tensors(lambda t: t[A].fill_(float("nan"))), ExportError, r"q_proj.lora_A.weight' holds NaN or infinity"),
    "infinity": (tensors(lambda t: t[B][0].fill_(float("inf"))), ExportError, r"q_proj.lora_B.weight' holds NaN"),
    "half a pair": (tensors(lambda t: t.pop(A)), ExportError, r"q_proj' has lora_B alone, expected lora_A and lora_B"),
    "wrong rank": (tensors(lambda t: t.update({A: t[A][:2].clone()})), ExportError, r"got A \[2, 60\] and B \[60, 4\]"),
    "wrong width": (
        tensors(lambda t: t.update({A: t[A][:, :9].clone()})),
        ExportError,
        r"got A \[4, 9\].*of \[60, 60\]",
    ),
    "one axis": (tensors(lambda t: t.update({A: t[A][0].clone()})), ExportError, r"got A \[60\]"),
    "rank 0": (
        tensors(lambda t: t.update({A: t[A][:0].clone(), B: t[B][:, :0].clone()})),
        ExportError,
        r"got A \[0, 60\] and B \[60, 0\]",
    ),
    "unknown module": (
        tensors(lambda t: t.update({k.replace("q_proj", "query"): t.pop(k) for k in (A, B)})),
        ExportError,
        r"adapts 'model.layers.0.self_attn.query', which the model does not have",
    ),
    "unknown tensor": (
        tensors(lambda t: t.update({"x": torch.ones(1)})),
        ExportError,
        r"adapts 'x', which the model does not have",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, adapter_path: Path, base: Base) -> None:
    damage, error, message = REFUSED[case]
    damage(adapter_path)
    with pytest.raises(error, match=message):
        merge(base, Config(path=str(adapter_path)))


def test_a_small_initialisation_is_no_obstacle(adapter_path: Path, base: Base) -> None:
    for harmless in (True, False, "gaussian", "eva", "orthogonal"):
        settings(init_lora_weights=harmless)(adapter_path)
        merge(base, Config(path=str(adapter_path)))


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weight_is_finite(weight: float) -> None:
    with pytest.raises(ExportError, match=r"lora: got weight=.*, expected a finite number"):
        Config(path="p", weight=weight)


@pytest.mark.parametrize("kind", [kind.value for kind in PeftType if kind is not PeftType.LORA])
def test_other_kinds_of_adapters_are_refused(kind: str, adapter_path: Path, base: Base) -> None:
    settings(peft_type=kind)(adapter_path)
    has_merge = hasattr(PEFT_TYPE_TO_TUNER_MAPPING[kind], "merge_and_unload") and kind not in NO_MERGE
    way = "merge it with PEFT" if has_merge else "it has no merge"
    with pytest.raises(UnsupportedError, match=rf"got peft_type '{kind}', expected 'LORA'; {way}"):
        merge(base, Config(path=str(adapter_path)))


def test_every_key_of_peft_is_known() -> None:
    assert {field.name for field in dataclasses.fields(LoraConfig)} <= USED | WITHOUT_EFFECT | REFUSED_KEYS.keys()


def renamed(change: Callable[[str], str]) -> Callable[[Path], object]:
    """A change of the tensors' names."""
    return tensors(lambda t: t.update({change(key): t.pop(key) for key in list(t)}))


SPELLINGS = {
    "with the adapter's name": renamed(lambda key: key.replace(".weight", ".mine.weight")),
    "without the prefix": renamed(lambda key: key.removeprefix("base_model.model.")),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_other_spellings(case: str, adapter_path: Path, base: Base) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = merge(base, Config(path=str(adapter_path)))[name].load()
    SPELLINGS[case](adapter_path)
    assert np.array_equal(merge(base, Config(path=str(adapter_path)))[name].load(), expected)


def test_whole_modules_of_an_earlier_peft(adapter_path: Path, base: Base) -> None:
    settings(modules_to_save=["norm"])(adapter_path)
    norms = [name for name in base.weights if name.endswith("norm.weight")]
    own = {f"base_model.model.{name.replace('.weight', '.modules_to_save.weight')}": torch.ones(60) for name in norms}
    tensors(lambda t: t.update(own))(adapter_path)
    merged = merge(base, Config(path=str(adapter_path)))
    assert all((merged[name].load() == 1).all() for name in norms)
