"""Tests of PiSO from checkpoint to engine: the quantised layers, their exact codes in engines, and refusals."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM

from enginewright.exporters.build import build
from enginewright.exporters.calibration import LinearGroup
from enginewright.exporters.checkpoint_export.writer import export_checkpoint
from enginewright.exporters.methods.piso import method
from enginewright.exporters.methods.piso.method import Config
from enginewright.exporters.methods.piso.solver import int_grid, solve
from enginewright.exporters.methods.registry import Applied, transform_weights
from enginewright.exporters.parity import compare
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.weights.registry import choose_storage
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from tests.support.exporters.families import FAMILIES, make_model, save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker

SMALL: dict[str, Any] = {"sequences": 4, "length": 24}
EXACT = choose_storage("float32", {"compute": "float32"})

# Linear layers in a block, and products of a step that hold them: query, key and value are one, gate and up another.
LAYERS = {
    "llama": (7, 4),
    "qwen2": (7, 4),
    "qwen3": (7, 4),
    "mistral": (7, 4),
    "gemma2": (7, 4),
    "gemma3_text": (7, 4),
    "phi3": (4, 4),
    "mixtral": (4, 2),
    "helium": (7, 4),
    "gpt_oss": (4, 2),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def quantise(model: Path, config: Config) -> dict[str, Weight]:
    """The weights of the checkpoint, some of them quantised."""
    checkpoint = open_checkpoint(str(model))
    weights = bind_parameters(checkpoint, load_reference(str(model), ()))
    return transform_weights((Applied("piso", config),), weights, checkpoint)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_computes_with_the_chosen_codes(
    family: str, checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Largest logit error against PyTorch with the restored weights: the order of float32 sums. One calibration serves all."""
    model, applied = checkpoint(family), (Applied("piso", Config(group_size=0, **SMALL)),)
    manifest = build(str(model), tmp_path / "e", Recipe(apply=applied, weights=EXACT, kv_bits=32), "onnxruntime")
    monkeypatch.setattr(method, "quantize_layer", None)
    layers, products = LAYERS[family]
    count = open_checkpoint(str(model)).config.num_hidden_layers
    quantised = [name for name, weight in quantise(model, applied[0].config).items() if weight.quantized is not None]
    assert len(quantised) == layers * count
    path = tmp_path / "e" / manifest.graphs["decoder"].files[0].path
    nodes = collections.Counter(node.op_type for node in ir.load(path).graph)
    assert nodes["MatMulNBits"] == products * count
    with load(tmp_path / "e", threads=2) as llm:
        parity = compare(llm, load_reference(str(model), applied), new_tokens=20)
    assert parity.max_error < 1e-5 and not parity.unexplained


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "group_size", "correction"),
    [
        (2, 32, "none"),
        (2, 0, "gptq"),
        (3, 16, "gptq"),
        (3, 0, "qronos"),
        (4, 32, "qronos"),
        (4, 0, "none"),
        (8, 32, "gptq"),
    ],
)
def test_bits_and_groups(
    bits: int, group_size: int, correction: str, checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    config = Config(bits=bits, group_size=group_size, correction=correction, **SMALL)  # type: ignore[arg-type]
    applied = (Applied("piso", config),)
    build(str(checkpoint("qwen2")), tmp_path / "e", Recipe(apply=applied, weights=EXACT, kv_bits=32), "onnxruntime")
    with load(tmp_path / "e", threads=2) as llm:
        parity = compare(llm, load_reference(str(checkpoint("qwen2")), applied), new_tokens=20)
    assert parity.max_error < 1e-5 and not parity.unexplained
    for weight in quantise(checkpoint("qwen2"), config).values():
        if weight.quantized is not None:
            codes, scales = weight.quantized.load()
            half = 1 << (bits - 1)
            assert codes.min() >= -half and codes.max() < half and (scales != 0).all()
            assert scales.shape == (len(codes), codes.shape[1] // (group_size or codes.shape[1]))


@pytest.mark.native
@pytest.mark.slow
def test_a_checkpoint_for_other_servers_gives_the_same_logits(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits from transformers and compressed-tensors, against the reference that engines are compared with."""
    applied = (Applied("piso", Config(bits=3, group_size=16, **SMALL)),)
    size = export_checkpoint(open_checkpoint(str(checkpoint("qwen3"))), tmp_path, applied, "compressed-tensors")
    monkeypatch.setattr(method, "quantize_layer", None)  # the reference takes the same results
    ids = torch.arange(3, 43)[None] * 5 % 250
    with torch.no_grad():
        expected = load_reference(str(checkpoint("qwen3")), applied)(input_ids=ids).logits
        got = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")(input_ids=ids).logits
    assert size > 0
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


@pytest.mark.native
@pytest.mark.slow
def test_with_an_encoded_cache_the_rotation_of_values_stays_in_the_op(
    checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    """Folding it into the weights would lose the codes. Up to the first tile the cache is exact but for halves."""
    applied = (Applied("piso", Config(group_size=32, **SMALL)), parse_method("kvarn:k_bits=8,v_bits=8"))
    manifest = build(str(checkpoint("qwen3")), tmp_path / "e", Recipe(apply=applied, weights=EXACT), "onnxruntime")
    nodes = list(ir.load(tmp_path / "e" / manifest.graphs["decoder"].files[0].path).graph)
    attention = [node for node in nodes if node.op_type == "KVarNAttention"]
    assert attention and all(node.attributes.get_int("rotate_values", 1) == 1 for node in attention)
    assert sum(node.op_type == "MatMulNBits" for node in nodes) == 8
    ids = (np.arange(3, 43) * 5 % 250).tolist()
    with load(tmp_path / "e", threads=2) as llm, torch.no_grad():
        expected = load_reference(str(checkpoint("qwen3")), applied)(input_ids=torch.tensor([ids])).logits[0]
        np.testing.assert_allclose(llm.logits(ids), expected, atol=1e-3, rtol=0)


def test_what_was_done_is_not_done_again(checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(group_size=32, **SMALL)
    first = quantise(checkpoint("qwen2"), config)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(method, "quantize_layer", never)
    monkeypatch.setattr(method, "tokens_from_model", never)
    again = quantise(checkpoint("qwen2"), config)
    for name, weight in first.items():
        np.testing.assert_array_equal(weight.load(), again[name].load())
    with pytest.raises(AssertionError, match="computed again"):
        quantise(checkpoint("qwen2"), dataclasses.replace(config, seed=1))


@pytest.mark.native
@pytest.mark.slow
def test_engine_reference_and_checkpoint_share_a_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model stored in bfloat16, whose config each command loads and changes in its own way."""
    model = make_model("qwen2").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    applied = (Applied("piso", Config(**SMALL)),)
    build(str(tmp_path / "model"), tmp_path / "e", Recipe(apply=applied), "onnxruntime")
    monkeypatch.setattr(method, "quantize_layer", None)
    load_reference(str(tmp_path / "model"), applied)
    (tmp_path / "c").mkdir()
    export_checkpoint(open_checkpoint(str(tmp_path / "model")), tmp_path / "c", applied, "compressed-tensors")


def test_other_weights_are_another_calibration(tmp_path: Path) -> None:
    """A folder of the user's own holds one run; other weights do not take its results."""
    save_checkpoint("qwen2", tmp_path / "one")
    save_checkpoint("qwen2", tmp_path / "two", gain=2.0)
    config = Config(group_size=32, work=str(tmp_path / "work"), **SMALL)
    quantise(tmp_path / "one", config)
    with pytest.raises(ExportError, match="work"):
        quantise(tmp_path / "two", config)
    assert quantise(tmp_path / "one", config)


@pytest.mark.parametrize("correction", ["gptq", "qronos"])
def test_scales_of_a_decoupled_run_come_from_rounding(correction: str, checkpoint: CheckpointMaker) -> None:
    config = Config(group_size=32, correction=correction, interleave="decoupled", **SMALL)  # type: ignore[arg-type]
    rounded = dataclasses.replace(config, correction="none", objective=config.calibration.objective)
    corrected, plain = quantise(checkpoint("qwen2"), config), quantise(checkpoint("qwen2"), rounded)
    differ = 0
    for name, weight in corrected.items():
        other = plain[name].quantized
        if weight.quantized is not None and other is not None:
            np.testing.assert_array_equal(weight.quantized.load()[1], other.load()[1])
            differ += not np.array_equal(weight.quantized.load()[0], other.load()[0])
    assert differ > 0


def test_piso_is_better_than_the_largest_weights_scale(checkpoint: CheckpointMaker) -> None:
    """Logits of the quantised model against the float model's, on tokens it was not calibrated on."""
    ids = torch.randint(0, 250, (4, 60), generator=torch.Generator().manual_seed(7))

    def loss(scales: str, correction: str) -> float:
        config = Config(bits=2, group_size=32, scales=scales, correction=correction, interleave="layer", **SMALL)  # type: ignore[arg-type]
        model, weights = make_model("qwen2", gain=3.0), quantise(wide, config)
        with torch.no_grad():
            expected = model(input_ids=ids).logits.log_softmax(-1)
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name].load())))
            got = model(input_ids=ids).logits.log_softmax(-1)
        return float((expected.exp() * (expected - got)).sum(-1).mean())

    wide = checkpoint("qwen2", gain=3.0)
    assert loss("piso", "none") < loss("absmax", "none")
    assert loss("piso", "gptq") < loss("absmax", "gptq")


@pytest.mark.native
def test_a_layer_that_no_token_reached_gets_scales_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    weights, nothing = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(32, 32)
    names, rows = ("experts.0.weight", "experts.1.weight"), (1, 2)
    group = LinearGroup(names=names, rows=rows, weights=weights, hessian=nothing, cross=None, tokens=0)
    codes, scales = method.quantize_group(Config(), {}, group)
    found = solve(weights, torch.ones(32), grid=int_grid(4), signed=True)
    np.testing.assert_array_equal(codes.numpy(), found.codes)
    np.testing.assert_allclose(scales.numpy(), found.scales, rtol=1e-6)
    assert "experts.0.weight, experts.1.weight: no token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bits=5", "bits=5, expected one of 2, 3, 4, 8"),
        ("group_size=24", "groups of 24, expected a multiple of 16"),
        ("group_size=-1", "group_size=-1"),
        ("scales=best", "best"),
        ("correction=awq", "awq"),
        ("interleave=never", "never"),
        ("objective=theirs", "theirs"),
        ("objective=cross", "cross with correction=gptq.*use qronos"),
        ("scale_type=float8", "float8"),
        ("dtype=float16", "float16"),
        ("sequences=0", "0 sequences"),
        ("seed=-1", "seed=-1"),
        ("device=tpu", "tpu"),
        ("colour=red", "colour"),
    ],
)
def test_options_that_mean_nothing(options: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_method(f"piso:{options}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 48}, "48.*64"),
        ({"exclude": "*_proj.weight"}, "no linear layer.*exclude fewer"),
        ({"text": "/no/such/file"}, "/no/such/file: cannot be read"),
        ({"text": __file__}, "tokenizer"),
    ],
)
def test_what_does_not_fit_the_model(
    changes: dict[str, Any], message: str, checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that do not fit the model are refused before anything is written."""
    monkeypatch.setattr(method, "tokens_from_model", None)
    with pytest.raises(ExportError, match=message):
        quantise(checkpoint("qwen2"), Config(**{**SMALL, **changes}))


@pytest.mark.parametrize("scales", ["mse", "absmax"])
def test_rounding_needs_no_text(
    scales: Any,
    checkpoint: CheckpointMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without correction the codes depend on the weights alone: nothing is calibrated or kept, and they are the nearest."""
    monkeypatch.setattr(method, "calibrate", None)
    model = checkpoint("llama")
    config = Config(correction="none", scales=scales, group_size=0, text=str(tmp_path / "unused.txt"), signed=False)
    found = quantise(model, config)
    assert "need no calibration; not used: text" in capsys.readouterr().err and not list(
        tmp_path.glob("cache/**/*.npy")
    )
    quantised = {name: weight for name, weight in found.items() if weight.quantized is not None}
    assert len(quantised) == LAYERS["llama"][0] * open_checkpoint(str(model)).config.num_hidden_layers
    float_weights = dict(load_reference(str(model), ()).named_parameters())
    for name, weight in quantised.items():
        codes, steps = weight.quantized.load()
        groups = float_weights[name].detach().numpy().reshape(*steps.shape, -1)
        if scales == "absmax":
            assert np.allclose(steps, np.abs(groups).max(-1) / 8)
        nearest = np.clip(np.rint(groups / steps[..., None]), -8, 7)
        assert (
            np.abs(codes.reshape(groups.shape) - nearest) <= 1
        ).all()  # one off where a quotient lies between two codes
        assert (codes.reshape(groups.shape) == nearest).mean() > 0.999
