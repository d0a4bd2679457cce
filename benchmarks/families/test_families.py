"""Tests of the sweep over model types: its published results are complete and true, and it finds what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.families import text_parts
from benchmarks.families.__main__ import RESULTS, describe
from benchmarks.families.compare_type import refusal_of, try_type
from benchmarks.families.small_configs import (
    CONTEXT,
    LAYERS,
    model_types,
    published_config,
    small_config,
    whole_types,
)
from benchmarks.families.table import page
from benchmarks.families.text_parts import small_whole_config, try_text_part
from benchmarks.families.trained_looking import make_model
from benchmarks.families.variants import LENGTHS, VARIANTS, check_float
from benchmarks.families.verdicts import Sweep, TypeResult, Verdict, installed_versions, read_sweep
from enginewright.exporters.build import build
from enginewright.runtime.loader import load
from tests.support.paths import ROOT

# Each for a trait that the tests of single families do not have.
SHORT = {
    "phimoe": "a window that only the mask tells",
    "glm4_moe": "a buffer of the checkpoint that chooses experts; a dense layer first",
    "gemma4_text": "layers of other head sizes, and a scale that is a buffer",
    "mimo_v2_flash": "values of another width than keys; other KV heads in windows",
    "gpt2": "learned positions, transposed projections",
    "gpt_bigcode": "one KV head",
    "opt": "learned positions with an offset",
    "cohere2": "interleaved rotary embedding in windows only; a parallel block",
    "olmo2": "norms over whole projections",
    "granitemoe": "scales of embedding, residuals and logits; packed experts",
    "nemotron": "a LayerNorm around one; partial rotary embedding",
}


@pytest.fixture(scope="module")
def published() -> Sweep:
    return read_sweep(RESULTS)


@pytest.mark.slow
def test_every_type_of_this_transformers_is_in_the_results(published: Sweep) -> None:
    """A new version of transformers asks for a new sweep: nox -s families -- --write docs/reference/families.md."""
    assert tuple(sorted(published.results)) == model_types()
    assert tuple(sorted(published.text_parts)) == whole_types()


def test_every_type_is_right_or_refused(published: Sweep) -> None:
    wrong = [describe(result) for result in published.results.values() if result.kind == "wrong"]
    assert not wrong
    kinds = [result.kind for result in published.results.values()]
    assert len(kinds) >= 100
    assert kinds.count("right") >= 75


def test_every_text_part_is_right_or_refused(published: Sweep) -> None:
    wrong = [describe(result) for result in published.text_parts.values() if result.kind == "wrong"]
    assert not wrong
    assert [result.kind for result in published.text_parts.values()].count("right") >= 55


def test_refusals_are_those_of_the_support_check(published: Sweep) -> None:
    refused = {name: refusal for name in model_types() if (refusal := refusal_of(published_config(name)))}
    assert {name: published.results[name].refusal for name in refused} == refused
    refused = {name: refusal for name in whole_types() if (refusal := refusal_of(published_config(name)))}
    assert {name: published.text_parts[name].refusal for name in refused} == refused


def test_the_page_shows_the_results(published: Sweep) -> None:
    assert (ROOT / "docs/reference/families.md").read_text() == page(published)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("model_type", SHORT)
def test_types_of_many_traits_are_right(model_type: str) -> None:
    result = try_type(model_type, ["float32"])
    assert result.kind == "right", describe(result)


@pytest.mark.native
@pytest.mark.slow
def test_an_engine_of_another_model_is_wrong(tmp_path: Path) -> None:
    model = make_model(small_config("llama"))
    model.save_pretrained(tmp_path / "model")
    build(str(tmp_path / "model"), tmp_path / "engine", VARIANTS["float32"].recipe, "onnxruntime", trial="none")
    with load(tmp_path / "engine", threads=1) as llm:
        assert check_float(llm, model).kind == "right"
        with torch.no_grad():
            model.model.layers[LAYERS - 1].input_layernorm.weight[0] += 0.01
        verdict = check_float(llm, model)
    assert verdict.kind == "wrong"
    assert verdict.told.startswith("error ")


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["blip-2", "qwen3_omni_moe_thinker"])
def test_text_parts_are_right(model_type: str) -> None:
    """One whose class wants an image, and one that lies in a thinker."""
    result = try_text_part(model_type)
    assert result.kind == "right", describe(result)


@pytest.mark.native
@pytest.mark.slow
def test_an_engine_of_another_text_part_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved model is not the one that is compared."""
    train = text_parts.look_trained

    def train_and_save(whole: PreTrainedModel) -> None:
        train(whole)
        save = whole.save_pretrained

        def save_then_change(path: Path) -> None:
            save(path)
            with torch.no_grad():
                whole.model.language_model.layers[LAYERS - 1].input_layernorm.weight[0] += 0.01

        monkeypatch.setattr(whole, "save_pretrained", save_then_change)

    monkeypatch.setattr(text_parts, "look_trained", train_and_save)
    result = try_text_part("llava")
    assert result.kind == "wrong"
    assert result.variants["float32"].told.startswith("error ")


@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl", "qwen3_omni_moe"])
def test_small_whole_configs_have_small_text_parts(model_type: str) -> None:
    text = small_whole_config(model_type).get_text_config()
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (96, LAYERS, 250)


@pytest.mark.parametrize("model_type", ["llama", "glm4_moe", "gpt2", "gpt_oss"])
def test_every_tensor_of_a_checkpoint_looks_trained(model_type: str) -> None:
    """None is what the constructor makes, and no vector is constant."""
    config = small_config(model_type)
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32).state_dict()
    for name, tensor in make_model(config).state_dict().items():
        assert not torch.equal(tensor, fresh[name]), name
        assert tensor.std() > 0.01, name


@pytest.mark.parametrize("model_type", ["gemma2", "dots1", "laguna", "gemma3n_text"])
def test_small_configs_keep_each_kind_of_layer(model_type: str) -> None:
    config = small_config(model_type)
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.sliding_window < LENGTHS[1] < CONTEXT


def test_verdicts_are_read_back(tmp_path: Path) -> None:
    right = TypeResult(
        model_type="llama", commit="c", traits=("windows",), variants={"float32": Verdict(kind="right", value=1e-6)}
    )
    wrong = replace(right, model_type="qwen2", variants={"float32": Verdict(kind="wrong", value=1.0, told="error 1")})
    failed = TypeResult(model_type="a", commit="c", failure="TypeError: x")
    refused = TypeResult(model_type="t5", commit="c", refusal="t5: an encoder-decoder model | so")
    results = {result.model_type: result for result in (right, wrong, failed, refused)}
    part = TypeResult(model_type="llava", commit="d", traits=("llama", "so"), variants=right.variants)
    parts = {"llava": part, "clip": replace(refused, model_type="clip")}
    Sweep(versions=installed_versions(), results=results, text_parts=parts).write(tmp_path / "r.json")
    assert read_sweep(tmp_path / "r.json").results == results
    assert read_sweep(tmp_path / "r.json").text_parts == parts
    assert [results[name].kind for name in ("llama", "qwen2", "a", "t5")] == ["right", "wrong", "wrong", "refused"]
    text = page(read_sweep(tmp_path / "r.json"))
    assert "Of 4 model types" in text
    assert f"**Not tried yet** ({len(set(model_types()) - set(results))})" in text
    assert "1 are right and\n1 are refused with a reason; 2 are wrong" in text
    assert "| `llama` | windows | 1.0e-06 | not run |" in text
    assert "| `t5` | an encoder-decoder model \\| so |" in text
    assert "1 are right and 1 are refused with a reason; 0 are wrong." in text
    assert "| `llava` | `llama` (so) | 1.0e-06 |" in text


def test_results_of_other_versions_are_dropped(tmp_path: Path) -> None:
    refused = {"t5": TypeResult(model_type="t5", refusal="no")}
    Sweep(versions={"transformers": "4.0"}, results=refused).write(tmp_path / "r.json")
    assert read_sweep(tmp_path / "r.json") == Sweep(versions=installed_versions(), results={})
    assert read_sweep(tmp_path / "none.json").results == {}
