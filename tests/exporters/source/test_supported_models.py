"""Models that are refused before any work, with the reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from enginewright.exporters.build import build
from enginewright.exporters.capture.attention_hook import ATTENTION
from enginewright.exporters.capture.cache_formats import PagedCacheFormat
from enginewright.exporters.capture.capture import capture
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.quantized.refused_methods import REASONS
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.exporters.source.supported_models import check_supported, check_supported_raw
from enginewright.runtime.errors import EnginewrightError, ExportError, UnsupportedError

SUPPORTED = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "mixtral", "gpt_oss"]

REFUSED = {
    "t5": "t5: an encoder-decoder model; expected a decoder-only",
    "whisper": "an encoder-decoder model",
    "mamba": "got linear_attention layers, expected full_attention or sliding_attention",
    "rwkv": "its attention cannot be replaced .state-space",
    "bloom": "its attention cannot be replaced .*its own attention code",
    "deepseek_v3": "latent attention .MLA. keeps no keys and values per head",
    "qwen3_next": "got linear_attention layers",
    "jamba": "got linear_attention layers",
    "falcon_h1": "got hybrid layers",
    "llama4_text": "got chunked_attention layers",
    "vit": "no causal language model of this type",
}


@pytest.mark.parametrize("family", SUPPORTED)
def test_every_promised_family_is_taken(family: str) -> None:
    check_supported_raw({"model_type": family}, Path())
    check_supported(AutoConfig.for_model(family))


@pytest.mark.parametrize("family", REFUSED)
def test_refused_families_name_the_reason(family: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"^{family}: .*({REFUSED[family]})|^{REFUSED[family]}"):
        check_supported(AutoConfig.for_model(family))


def test_attention_to_later_tokens_is_found_by_the_hook() -> None:
    config = AutoConfig.for_model("bert", num_hidden_layers=1, hidden_size=16, num_attention_heads=2, vocab_size=50)
    with pytest.raises(UnsupportedError, match="bert: layer 0 attends to later tokens; expected a decoder"):
        capture(build_skeleton(config, attention=ATTENTION, max_context=64), PagedCacheFormat(16))


RAW: dict[str, tuple[dict[str, Any], type[EnginewrightError], str]] = {
    "no model type": ({}, ExportError, r"config.json: got no model_type"),
    "model type of a wrong type": ({"model_type": 7}, ExportError, r"config.json: got no model_type"),
    "unknown model type": ({"model_type": "nonesuch"}, UnsupportedError, r"'nonesuch' is unknown to this version of"),
    "remote code": (
        {"model_type": "nonesuch", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
        UnsupportedError,
        r"'nonesuch' needs code from the checkpoint \(auto_map\), which is never run",
    ),
    "quantised": (
        {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        UnsupportedError,
        r"weights are quantised \(bitsandbytes\): its codes are in blocks of the flattened matrix, and stand for uneven steps, "
        r"expected one of awq, .*fp8, gptq, .*mxfp4, or GGUF; pass the unquantised checkpoint",
    ),
    "quantised in a way that is not known": (
        {"model_type": "llama", "quantization_config": {"quant_method": "nonesuch"}},
        UnsupportedError,
        r"weights are quantised \(nonesuch\), expected one of awq, .*or GGUF; pass the unquantised checkpoint",
    ),
    "quantised, and remote code": (
        {"model_type": "nonesuch", "auto_map": {"AutoConfig": "m.C"}, "quantization_config": {"quant_method": "gptq"}},
        UnsupportedError,
        r"'nonesuch' needs code from the checkpoint \(auto_map\), which is never run",
    ),
    "quantised in its text part": (
        {"model_type": "llava", "text_config": {"quantization_config": {"quant_method": "hqq"}}},
        UnsupportedError,
        r"weights are quantised \(hqq\)",
    ),
    "quantised by an unnamed method": (
        {"model_type": "llama", "quantization_config": {"load_in_4bit": True}},
        UnsupportedError,
        r"weights are quantised .*; pass the unquantised checkpoint",
    ),
    "quantised beyond recognition": (
        {"model_type": "llama", "quantization_config": "int4"},
        UnsupportedError,
        r"weights are quantised .*; pass the unquantised checkpoint",
    ),
}


@pytest.mark.parametrize("case", RAW)
def test_refusals_from_the_raw_config(case: str) -> None:
    raw, error, message = RAW[case]
    with pytest.raises(error, match=message):
        check_supported_raw(raw, Path("model"))


@pytest.mark.parametrize("method", REASONS)
def test_a_checkpoint_in_a_way_that_is_not_read_names_the_reason(method: str, tmp_path: Path) -> None:
    settings = {"quant_method": method, "packing_format": "auto_round:llm_compressor", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    (tmp_path / "model.safetensors").touch()  # no whole file, which is never looked at
    with pytest.raises(UnsupportedError) as caught:
        open_checkpoint(str(tmp_path))
    assert f"{tmp_path / 'config.json'}: weights are quantised ({method}): {REASONS[method]}, expected" in str(
        caught.value
    )


def test_remote_code_beside_a_known_family_is_not_run() -> None:
    check_supported_raw({"model_type": "phi3", "auto_map": {"AutoModelForCausalLM": "m.M"}}, Path())
    check_supported_raw({"model_type": "llama", "quantization_config": None}, Path())


@pytest.mark.parametrize("family", ["t5", "mamba", "deepseek_v3", "qwen3_next", "llama4"])
def test_a_refused_build_writes_nothing(family: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": family}))
    (model / "model.safetensors").touch()  # no whole file, which is never looked at
    with pytest.raises(UnsupportedError, match=family):
        build(str(model), tmp_path / "engine", Recipe(), "onnxruntime")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
