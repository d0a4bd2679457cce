"""Tests of exported checkpoints, read back by transformers, against the model with the restored weights."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.checkpoint_export import writer
from enginewright.exporters.export import export as export_engine
from enginewright.exporters.methods import registry
from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import load_skeleton
from enginewright.exporters.weights.registry import choose_storage
from enginewright.exporters.weights.weight import QuantizedRows, Weight, quantized_weight
from enginewright.runtime import cli
from enginewright.runtime.loader import load as load_engine
from tests.support.exporters.families import FAMILIES, make_model, save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker

TOKENS = torch.arange(3, 43)[None] * 5 % 250
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Rounds matrices times `scale`, those whose name ends in `wide` to 8 bits. group_size 0: one scale a row.

    offset: "zero_points" or "minima" shifts the values of each group.
    """

    bits: int = 4
    group_size: int = 32
    scale_type: str = "float32"
    only: str = "_proj"
    wide: str = "none"
    scale: float = 1.0
    offset: str = "none"


def round_rows(x: np.ndarray, bits: int, group_size: int, scale_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales: the largest of a group becomes the lowest code, so that about half of the scales are negative."""
    groups = x.reshape(len(x), -1, group_size)
    scales = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0] / -(2 ** (bits - 1))
    if scale_type != "float32":
        scales = torch.from_numpy(scales).to(HALVES[scale_type]).float().numpy()
    codes = np.clip(np.rint(groups / scales[..., None]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes.reshape(x.shape).astype(np.int8), scales


def round_weights(config: Config, weights: dict[str, Weight], checkpoint: Checkpoint) -> dict[str, Weight]:
    """The method of these tests."""
    changed = dict(weights)
    for name, weight in weights.items():
        if config.only in name and name.endswith(".weight") and len(weight.shape) == 2:
            bits = 8 if name.removesuffix(".weight").endswith(config.wide) else config.bits
            size = config.group_size or weight.shape[1]

            def load(weight: Weight = weight, bits: int = bits, size: int = size) -> tuple[np.ndarray, np.ndarray]:
                return round_rows(weight.load() * np.float32(config.scale), bits, size, config.scale_type)

            shifts = partial(shift_groups, weight.shape[0], weight.shape[1] // size)
            zero_points = shifts if config.offset == "zero_points" else None
            minima = (lambda shifts=shifts: shifts() * np.float32(0.01)) if config.offset == "minima" else None
            rows = QuantizedRows(bits=bits, group_size=size, load=load, zero_points=zero_points, minima=minima)
            changed[name] = quantized_weight(weight.shape, rows)
    return changed


def shift_groups(n: int, groups: int) -> np.ndarray:
    """Zero points [n, groups] from -2 to 2."""
    return (np.arange(n * groups) % 5 - 2).astype(np.int8).reshape(n, groups)


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `--apply rounding:...` known."""
    method = Method(name="rounding", summary="rounded weights", config=Config, transform_weights=round_weights)
    known = {**registry.find_methods(), "rounding": method}
    monkeypatch.setattr(registry, "find_methods", lambda: known)


def export(source: Path, output: Path, *options: str, config: Config | None = None) -> int:
    """Run the command; `config` becomes --apply rounding."""
    apply = []
    if config is not None:
        apply = ["--apply", "rounding:" + ",".join(f"{k}={v}" for k, v in dataclasses.asdict(config).items())]
    return cli.main(["export-checkpoint", "--model", str(source), "--output", str(output), *apply, *options])


def load(path: Path, dtype: Any = torch.float32) -> PreTrainedModel:
    """The model as transformers loads it, without a tensor missing, left over or of another shape."""
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    return model


def restored(source: Path, config: Config, dtype: Any = torch.float32) -> PreTrainedModel:
    """The source's model with the method's weights, made without any format."""
    model = load(source, dtype)
    checkpoint = open_checkpoint(str(source))
    weights = round_weights(config, bind_parameters(checkpoint, model), checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if weights[name].quantized is not None:
                parameter.copy_(torch.from_numpy(weights[name].load()))
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    """The logits of one prompt."""
    with torch.no_grad():
        return model(TOKENS).logits.float()


def assert_loads_as_restored(source: Path, output: Path, config: Config, dtype: Any = torch.float32) -> None:
    """Check that the loaded weights are bit-identical: the same codes times the same scales."""
    expected = logits(restored(source, config, dtype))
    assert (expected - logits(load(source, dtype))).abs().max() > 1e-3, "rounding must matter"
    assert torch.equal(logits(load(output, dtype)), expected)


def assert_reads_back(source: Path, output: Path, config: Config) -> None:
    """The codes of an engine of `output` are those that the method chose for `source`."""
    first, second = open_checkpoint(str(source)), open_checkpoint(str(output))
    model = load_skeleton(first, attention="eager", max_context=1).model
    chosen = round_weights(config, bind_parameters(first, model), first)
    read = bind_parameters(second, model, restored="")
    assert second.unused.parts == first.unused.parts
    for name, weight in chosen.items():
        assert read[name].form == weight.form, name
        if (rows := weight.quantized) is None or (again := read[name].quantized) is None:
            continue
        for left, right in zip(rows.load(), again.load(), strict=True):
            np.testing.assert_array_equal(left, right)
        if rows.zero_points is not None and again.zero_points is not None:
            np.testing.assert_array_equal(rows.zero_points(), again.zero_points())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with rows of 64 and of 128, tokenizer files and a licence."""
    path = tmp_path_factory.mktemp("llama") / "llama"
    save_checkpoint("llama", path, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "notes.md"):
        (path / name).write_text(name)
    return path


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint stored in a half type."""
    made: dict[str, Path] = {}

    def make(dtype: str) -> Path:
        if dtype not in made:
            made[dtype] = tmp_path_factory.mktemp("halves") / dtype
            make_model("qwen2").to(HALVES[dtype]).save_pretrained(made[dtype])
        return made[dtype]

    return make


# transformers 5.23 takes experts stored one by one to be quantised, whatever `ignore` says, and cannot load mixtral.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mixtral"])
def test_families_load_as_restored(family: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    config = Config(group_size=12 if family == "llama" else 32)
    assert export(checkpoint(family), tmp_path / "out", config=config) == 0
    assert_loads_as_restored(checkpoint(family), tmp_path / "out", config)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("group_size", [0, 32])
def test_widths_load_as_restored(bits: int, group_size: int, llama: Path, tmp_path: Path) -> None:
    config = Config(bits=bits, group_size=group_size)
    assert export(llama, tmp_path / "out", config=config) == 0
    assert_loads_as_restored(llama, tmp_path / "out", config)
    raw = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    (group,) = QuantizationConfig.model_validate(raw).config_groups.values()
    assert group.weights.num_bits == (4 if bits <= 4 else 8) and group.weights.symmetric
    assert (group.weights.strategy, group.weights.group_size) == (("group", 32) if group_size else ("channel", None))
    assert raw["ignore"] == ["lm_head"] and group.targets == ["Linear"]
    packed = load_file(tmp_path / "out/model.safetensors")
    scales = torch.cat([t.flatten() for name, t in packed.items() if name.endswith("weight_scale")])
    assert 0.3 < (scales < 0).float().mean() < 0.7


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group_size", [0, 32])
def test_zero_points_restore_as_chosen(bits: int, group_size: int, llama: Path, tmp_path: Path) -> None:
    """By the format's own code, because transformers 5.23 expects unpacked zero points and loads none that are packed."""
    config = Config(bits=bits, group_size=group_size, offset="zero_points")
    assert export(llama, tmp_path / "out", config=config) == 0
    raw = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    (group,) = QuantizationConfig.model_validate(raw).config_groups.values()
    assert group.weights.symmetric is False
    expected = dict(restored(llama, config).named_parameters())
    packed: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in raw_tensors(tmp_path / "out").items():
        module, _, part = name.rpartition(".")
        packed.setdefault(module, {})[part] = tensor
    linears = {module: parts for module, parts in packed.items() if "weight_packed" in parts}
    assert len(linears) == 14 and all("weight_zero_point" in parts for parts in linears.values())
    for module, parts in linears.items():
        found = PackedQuantizationCompressor.decompress(parts, group)["weight"]
        assert torch.equal(found, expected[f"{module}.weight"]), module
    assert_reads_back(llama, tmp_path / "out", config)


@pytest.mark.parametrize("wide", ["none", "o_proj"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_read_back(family: str, wide: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    config = Config(group_size=0, wide=wide)
    assert export(checkpoint(family), tmp_path / "out", config=config) == 0
    assert_reads_back(checkpoint(family), tmp_path / "out", config)


def test_a_group_as_long_as_a_row_is_a_group(llama: Path, tmp_path: Path) -> None:
    config = Config(group_size=64)  # rows of 64 and of 128
    assert export(llama, tmp_path / "out", config=config) == 0
    assert_loads_as_restored(llama, tmp_path / "out", config)
    raw = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert [group["weights"]["group_size"] for group in raw["config_groups"].values()] == [64]


def test_several_ways_become_groups_of_names(llama: Path, tmp_path: Path) -> None:
    config = Config(wide="down_proj")
    assert export(llama, tmp_path / "out", config=config) == 0
    assert_loads_as_restored(llama, tmp_path / "out", config)
    raw = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    targets = {group["weights"]["num_bits"]: group["targets"] for group in raw["config_groups"].values()}
    assert targets[8] == [f"model.layers.{i}.mlp.down_proj" for i in range(2)]
    assert len(targets[4]) == 12


@pytest.mark.parametrize("dtype", HALVES)
def test_halves(dtype: str, halves: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, exact = halves(dtype), Config(scale_type=dtype)
    capsys.readouterr()  # progress of what made it
    assert export(source, tmp_path / "exact", config=exact) == 0
    assert capsys.readouterr().err == ""
    types = {name: t.dtype for name, t in load_file(tmp_path / "exact/model.safetensors").items()}
    assert {t for name, t in types.items() if name.endswith("_scale")} == {HALVES[dtype]}
    for loaded in (HALVES[dtype], torch.float32):  # float32: what our engine computes
        assert_loads_as_restored(source, tmp_path / "exact", exact, loaded)

    wide = Config(scale=0.9)
    capsys.readouterr()
    assert export(source, tmp_path / "wide", config=wide) == 0
    assert f"stored as float32, since {dtype} would change them" in (err := capsys.readouterr().err)
    assert f"scale_type={dtype}" in err
    assert_loads_as_restored(source, tmp_path / "wide", wide)


def raw_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint as they are stored."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        found.update(load_file(file))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_other_tensors_stay_as_they_are(family: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    assert export(checkpoint(family), tmp_path / "out", config=Config(only="o_proj", group_size=0)) == 0
    before, after = raw_tensors(checkpoint(family)), raw_tensors(tmp_path / "out")
    changed = {name for name in before if name.endswith("o_proj.weight")}
    assert len(changed) == len({name for name in before if "o_proj.weight" in name}) > 0
    parts = {name + suffix for name in changed for suffix in ("_packed", "_scale", "_shape")}
    assert set(after) == set(before) - changed | parts
    for name in set(before) - changed:
        assert after[name].dtype == before[name].dtype and torch.equal(after[name], before[name]), name


def test_experts_and_routers_are_left_out_under_every_name(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    assert export(checkpoint("mixtral"), tmp_path / "out", config=Config()) == 0
    raw = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    gates = {f"model.layers.{i}.{block}.gate" for i in range(2) for block in ("block_sparse_moe", "mlp")}
    assert set(raw["ignore"]) == {*gates, "lm_head", r"re:.*\.experts(\..*)?$"}


def test_tensors_are_aligned(llama: Path, tmp_path: Path) -> None:
    assert export(llama, tmp_path / "out", config=Config()) == 0
    file = (tmp_path / "out/model.safetensors").read_bytes()
    length = int.from_bytes(file[:8], "little")
    widths = {"I64": 8, "F32": 4, "I32": 4}
    header = json.loads(file[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    assert all(tensor["data_offsets"][0] % widths[tensor["dtype"]] == 0 for tensor in header.values())


def test_files_beside_the_tensors(llama: Path, tmp_path: Path) -> None:
    assert export(llama, tmp_path / "out", config=Config()) == 0
    copied = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"}
    made = {"config.json", "model.safetensors", "enginewright.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == copied | made
    assert all((tmp_path / "out" / name).read_bytes() == (llama / name).read_bytes() for name in copied)
    config = json.loads((tmp_path / "out/config.json").read_text())
    config.pop("quantization_config")
    assert config == json.loads((llama / "config.json").read_text())
    record = json.loads((tmp_path / "out/enginewright.json").read_text())
    assert record["source"] == "llama" and record["applied"] == [{"name": "rounding", **dataclasses.asdict(Config())}]


def test_shards_stay_shards(tmp_path: Path) -> None:
    save_checkpoint("mistral", tmp_path / "source", max_shard_size="60KB")
    assert export(tmp_path / "source", tmp_path / "out", config=Config()) == 0
    names = {path.name for path in (tmp_path / "source").glob("*.safetensors")}
    assert len(names) > 2 and {path.name for path in (tmp_path / "out").glob("*.safetensors")} == names
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    for name in names:
        with safe_open(tmp_path / "out" / name, framework="pt") as f:
            assert set(f.keys()) == {tensor for tensor, file in index["weight_map"].items() if file == name}
    after = raw_tensors(tmp_path / "out")
    assert index["metadata"] == {"total_size": sum(t.numel() * t.element_size() for t in after.values())}
    assert_loads_as_restored(tmp_path / "source", tmp_path / "out", Config())


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 8])
def test_transformers_computes_what_the_engine_does(
    bits: int, checkpoint: CheckpointMaker, engine: EngineMaker, tmp_path: Path
) -> None:
    source, config = checkpoint("mistral"), Config(bits=bits)
    assert export(source, tmp_path / "out", config=config) == 0
    applied = registry.Applied("rounding", config)
    root, _ = engine(
        source, Recipe(kv_bits=32, apply=(applied,), weights=choose_storage("float32", {"compute": "float32"}))
    )
    with load_engine(root, threads=1) as llm:
        got = llm.logits(TOKENS[0].tolist())
    assert np.abs(got - logits(load(tmp_path / "out"))[0].numpy()).max() < 1e-5


# ---- merged adapters


def save_adapter(path: Path, modules: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Write a LoRA adapter of rank 3 for modules with (outputs, inputs); returns what it adds, by module."""
    path.mkdir()
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", "target_modules": list(modules)}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(1)
    tensors, added = {}, {}
    for module, (out, into) in modules.items():
        a, b = (torch.randn(shape, generator=generator) * 0.1 for shape in ((3, into), (out, 3)))
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        added[module] = 2 * (b.double() @ a.double())
    save_file(tensors, path / "adapter_model.safetensors")
    return added


Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def test_merged_adapter(llama: Path, tmp_path: Path) -> None:
    added = save_adapter(tmp_path / "adapter", {Q: (64, 64), DOWN: (64, 128)})
    assert export(llama, tmp_path / "out", "--apply", f"lora:path={tmp_path / 'adapter'}") == 0
    before, after = raw_tensors(llama), raw_tensors(tmp_path / "out")
    assert set(before) == set(after)
    for name, tensor in after.items():
        expected = before[name].double() + added.get(name.removesuffix(".weight"), 0)
        assert (tensor - expected).abs().max() < 1e-6, name
        assert torch.equal(tensor, before[name]) == (name not in (f"{Q}.weight", f"{DOWN}.weight"))
    assert (tmp_path / "out/config.json").read_bytes() == (llama / "config.json").read_bytes()
    load(tmp_path / "out")


@pytest.mark.parametrize("dtype", HALVES)
def test_merged_adapter_in_halves_is_rounded_once(dtype: str, halves: Callable[[str], Path], tmp_path: Path) -> None:
    added = save_adapter(tmp_path / "adapter", {Q: (64, 64)})
    assert export(halves(dtype), tmp_path / "out", "--apply", f"lora:path={tmp_path / 'adapter'}") == 0
    before, after = (raw_tensors(path)[f"{Q}.weight"] for path in (halves(dtype), tmp_path / "out"))
    assert after.dtype == HALVES[dtype]
    merged = before.double() + added[Q]
    assert (after.double() - merged).abs().max() <= (merged.abs().max() * torch.finfo(after.dtype).eps)
    assert not set(raw_tensors(halves(dtype))) ^ set(raw_tensors(tmp_path / "out")), "tied embeddings stay tied"


def test_merged_and_then_quantised(llama: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", {Q: (64, 64), "lm_head": (250, 64)})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"apply: [{{lora: {{path: {tmp_path / 'adapter'}}}}}]\n")
    assert export(llama, tmp_path / "merged", "--recipe", str(recipe)) == 0
    assert export(llama, tmp_path / "out", "--recipe", str(recipe), config=Config()) == 0
    assert_loads_as_restored(tmp_path / "merged", tmp_path / "out", Config())


# ---- ModelOpt's format, which no library here loads


@pytest.mark.parametrize(
    ("config", "algorithm"),
    [
        (Config(bits=3, group_size=64), {"quant_algo": "W4A16_AWQ", "group_size": 64, "has_zero_point": False, "pre_quant_scale": True}),
        (Config(bits=4, group_size=0), {"quant_algo": "W4A16"}),
        (Config(bits=8, group_size=0), {"quant_algo": "W8A16"}),
    ],
)  # fmt: skip
def test_modelopt(config: Config, algorithm: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(llama, out, "--format", "modelopt", config=config) == 0
    file = json.loads((out / "hf_quant_config.json").read_text())
    assert file["producer"]["name"] == "enginewright"
    assert file["quantization"] == {**algorithm, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    inline = json.loads((out / "config.json").read_text())["quantization_config"]
    assert inline["quant_method"] == "modelopt" and inline["quant_algo"] == algorithm["quant_algo"]
    assert inline.get("group_size") == algorithm.get("group_size") and inline["ignore"] == ["lm_head"]
    expected = dict(restored(llama, config).named_parameters())
    tensors = raw_tensors(out)
    for name in [name for name in expected if name.endswith("_proj.weight")]:
        codes, scales = tensors[name], tensors[f"{name}_scale"]
        n, k = expected[name].shape
        if config.bits != 8:
            assert codes.dtype == torch.uint8 and codes.shape == (n // 2, k)
            low, high = codes & 15, codes >> 4
            signed = torch.stack([low, high], 1).reshape(n, k).int()
            codes = torch.where(signed > 7, signed - 16, signed)
        assert scales.shape == ((n, k // 64) if config.group_size else (n,))
        rows = (codes.float().reshape(n, -1, config.group_size or k) * scales.reshape(n, -1, 1)).reshape(n, k)
        assert torch.equal(rows, expected[name]), name
        ones = tensors.get(name.replace("weight", "pre_quant_scale"))
        assert (ones is not None) == bool(config.group_size) and (ones is None or torch.equal(ones, torch.ones(k)))


# ---- what is refused

REFUSED: dict[str, tuple[str, list[str], str]] = {
    "no method": ("llama", [], r"apply: got no method, expected at least one of .*lora"),
    "a method of engines": ("llama", ["--apply", "kvarn"], r"apply: kvarn changes engines, not weights.*enginewright build"),
    "unknown method": ("llama", ["--apply", "nonesuch"], r"unknown method 'nonesuch'"),
    "embedding": ("llama", ["--apply", "rounding:only=embed_tokens,group_size=0"], r"'model.embed_tokens.weight' is quantised, expected the weight of a Linear"),
    "tied": ("qwen2", ["--apply", "rounding:only=lm_head"], r"'lm_head.weight' is changed, and tied to 'model.embed_tokens.weight'"),
    "router": ("mixtral", ["--apply", "rounding:only=gate"], r"'model.layers.0.mlp.gate.weight' is quantised, expected"),
    "modelopt, experts": ("gpt_oss", ["--apply", "rounding:group_size=0", "--format", "modelopt"], r"format modelopt: got experts"),
    "modelopt, small groups": ("qwen2", ["--apply", "rounding", "--format", "modelopt"], r"got 4 bits in groups of 32, expected 4 in groups of 64 or 128"),
    "modelopt, bytes in groups": ("qwen2", ["--apply", "rounding:bits=8", "--format", "modelopt"], r"got 8 bits in groups of 32"),
    "modelopt, zero points": ("qwen2", ["--apply", "rounding:group_size=64,offset=zero_points", "--format", "modelopt"], r"format modelopt: '[\w.]+' got codes with zero points, expected codes around 0"),
    "minima": ("qwen2", ["--apply", "rounding:offset=minima"], r"weight' got codes with a minimum a group, expected zero points or none"),
    "modelopt, two ways": ("qwen2", ["--apply", "rounding:wide=down_proj", "--format", "modelopt"], r"got 2 ways of quantising"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, checkpoint: CheckpointMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, options, message = REFUSED[case]
    assert export(checkpoint(family), tmp_path / "out", *options) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and not (tmp_path / "out").exists()
    assert re.search(message, captured.err), captured.err


def test_a_form_that_modelopt_lacks_is_refused_before_calibration(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert export(llama, tmp_path / "out", "--apply", "piso", "--format", "modelopt") == 2
    assert "format modelopt: got 4 bits in groups of 32, expected 4 in groups of 64 or 128" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_changed_part_is_refused(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(config: Config, weights: dict[str, Weight], _: Checkpoint) -> dict[str, Weight]:
        name = "model.layers.1.mlp.experts.down_proj"
        return {**weights, name: weights[name].derive(weights[name].shape, lambda x: x * 2)}

    method = dataclasses.replace(registry.find_methods()["rounding"], transform_weights=change)
    monkeypatch.setattr(registry, "find_methods", lambda: {"rounding": method})
    assert export(checkpoint("mixtral"), tmp_path / "out", config=Config()) == 2
    assert "'model.layers.1.mlp.experts.down_proj' is changed, but the checkpoint has it in" in capsys.readouterr().err


def test_a_recipe_for_engines_is_refused(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("apply: [rounding]\nweights: int4\n")
    assert export(llama, tmp_path / "out", "--recipe", str(tmp_path / "recipe.yaml")) == 2
    assert "recipe.yaml: got 'weights', which engines have; expected apply alone" in capsys.readouterr().err


def test_overwrite(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert export(llama, out, config=Config()) == 0
    before = (out / "model.safetensors").read_bytes()
    assert export(llama, out, config=Config(bits=3)) == 2
    assert "exists; pass --overwrite to replace it" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    assert export(llama, out, "--overwrite", config=Config(bits=3)) == 0
    assert (out / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_but_an_exported_checkpoint_is_replaced(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(llama, tmp_path / "source"))
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    assert export(source, other, "--overwrite", config=Config()) == 2
    assert "other: exists and has no enginewright.json, so it is not overwritten" in capsys.readouterr().err
    (source / "enginewright.json").write_text("{}")
    assert export(source, source, "--overwrite", config=Config()) == 2
    assert "source: is the checkpoint that is read; choose another --output" in capsys.readouterr().err
    for path in (source, other):
        assert (path / "model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the writing of JSON fail, which is the last thing that an export does."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_save", fail)
    yield


def test_a_full_disk_changes_nothing(
    llama: Path, tmp_path: Path, full_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(llama, tmp_path / "out/deep", config=Config()) == 2
    assert "cannot be written (No space left on device); nothing was changed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_values_beyond_the_type_are_refused(
    halves: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(tmp_path / "adapter", {Q: (64, 64)})
    option = f"lora:path={tmp_path / 'adapter'},weight=1e7"
    assert export(halves("float16"), tmp_path / "out", "--apply", option) == 2
    assert "q_proj.weight: got values up to" in (err := capsys.readouterr().err) and "F16 does not hold" in err
    assert not (tmp_path / "out").exists()


def initializers(root: Path) -> dict[str, bytes]:
    """The tensors of an engine's graph by the last parts of their names, in order, as bytes."""
    graph = onnx.load(root / "graphs/decoder.onnx").graph
    return {each.name: onnx.numpy_helper.to_array(each).tobytes() for each in graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format_name", "config"),
    [
        ("compressed-tensors", Config()),
        ("compressed-tensors", Config(bits=2)),
        ("compressed-tensors", Config(bits=3, group_size=0)),
        ("compressed-tensors", Config(group_size=64, offset="zero_points")),
        ("compressed-tensors", Config(wide="down_proj")),
        ("compressed-tensors", Config(bits=5, scale_type="bfloat16")),
        ("modelopt", Config(group_size=64)),
        ("modelopt", Config(bits=3, group_size=0)),
        ("modelopt", Config(bits=8, group_size=0)),
    ],
)
def test_engines_of_exports_are_those_of_the_source(
    format_name: str, config: Config, llama: Path, tmp_path: Path
) -> None:
    """An engine built from what was exported has, bit for bit, the graph of one that is built with the method itself."""
    source = shutil.copytree(llama, tmp_path / "source", ignore=shutil.ignore_patterns("tokenizer*", "*.jinja"))
    assert export(source, tmp_path / "out", "--format", format_name, config=config) == 0
    for name in ("read", "direct"):
        (tmp_path / name).mkdir()
    applied = (registry.apply_method("rounding", dataclasses.asdict(config)),)
    sizes = {"max_batch": 2, "max_context": 64}
    found = export_engine(str(tmp_path / "out"), tmp_path / "read", Recipe(**sizes))
    export_engine(str(source), tmp_path / "direct", Recipe(apply=applied, **sizes))
    assert {entry["type"].partition(" ")[0] for entry in found.weights["codes"]} >= {f"int{config.bits}"}
    assert all("kept" in entry for entry in found.weights["codes"])
    assert initializers(tmp_path / "read") == initializers(tmp_path / "direct")
