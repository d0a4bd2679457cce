"""Tests of GGUF checkpoints as sources: the logits of each family, and an engine that is made of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.registry import find_source
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from enginewright.runtime.requests.sampling import Sampling
from tests.support.exporters.families import save_checkpoint
from tests.support.exporters.gguf_files import FAMILIES, make_model, write_gguf

TOKENS = torch.arange(3, 60)[None]  # longer than the window


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Of all tokens."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_is_the_model_that_it_was_made_of(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    file = write_gguf(model, tmp_path / "m.gguf")
    assert torch.equal(logits(load_reference(str(file), ())), logits(model))
    opened = open_checkpoint(str(file))
    assert opened.unused.parts == ()
    assert opened.tensors.keys() <= dict(model.named_parameters(remove_duplicate=False)).keys()


QUANTISED = {
    "llama": {
        "attn_q": "Q8_0",
        "attn_k": "Q4_0",
        "attn_v": "F16",
        "attn_output": "Q5_1",
        "ffn_up": "Q4_1",
        "token": "BF16",
    },
    "qwen2": {"attn_q.weight": "Q4_1", "ffn": "Q5_0", "token_embd": "Q8_0"},
    "qwen3": {"attn_output": "Q4_0", "ffn_down": "Q5_0", "output.weight": "Q4_1"},
}


@pytest.mark.parametrize("family", QUANTISED)
def test_blocks_give_the_logits_of_transformers_own_reading(family: str, tmp_path: Path) -> None:
    changes = {"head_dim": 128} if family == "qwen3" else {}  # the one size of its heads that transformers' reading has
    file = write_gguf(
        make_model(family, **changes), tmp_path / "m.gguf", kinds={"norm": "F32", "bias": "F32"} | QUANTISED[family]
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours = load_reference(str(file), ())
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), parameter), name


def test_content_is_the_numbers_or_the_blocks(tmp_path: Path) -> None:
    kinds = {"norm": "F32", "attn_q": "BF16", "attn_k": "F16", "attn_v": "Q4_0"}
    file = write_gguf(make_model("llama"), tmp_path / "m.gguf", kinds=kinds)
    opened = open_checkpoint(str(file))
    layer = "model.layers.1.self_attn"
    for name, dtype in ((f"{layer}.q_proj.weight", torch.bfloat16), (f"{layer}.k_proj.weight", torch.float16)):
        content = b"".join(opened.content(name))
        stored = opened.tensors[name]
        values = torch.frombuffer(bytearray(content), dtype=dtype).reshape(stored.shape)
        assert torch.equal(values.float(), opened.read(name)) and stored.size == len(content)
    blocks = opened.tensors[f"{layer}.v_proj.weight"]
    assert blocks.dtype == "Q4_0 blocks" and blocks.size == 48 * 96 // 32 * 18
    assert len(b"".join(opened.content(f"{layer}.v_proj.weight"))) == blocks.size


def test_one_expert_is_read_without_the_others(tmp_path: Path) -> None:
    model = make_model("qwen3_moe")
    opened = open_checkpoint(str(write_gguf(model, tmp_path / "m.gguf", kinds={"exps": "Q8_0"})))
    for name in ("gate_up_proj", "down_proj"):
        whole = opened.read(f"model.layers.1.mlp.experts.{name}")
        for part in range(4):
            assert torch.equal(opened.read(f"model.layers.1.mlp.experts.{name}", part), whole[part : part + 1])


def test_a_part_of_a_matrix(tmp_path: Path) -> None:
    opened = open_checkpoint(str(write_gguf(make_model("llama"), tmp_path / "m.gguf")))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(opened.read(name, 37), opened.read(name)[37:38])


def test_the_ends_of_an_answer(tmp_path: Path) -> None:
    more = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 2}
    opened = open_checkpoint(str(write_gguf(make_model("llama"), tmp_path / "m.gguf", metadata=more)))
    assert opened.generation == {"eos_token_id": [2, 7]}


def test_what_nothing_is_made_of_is_named(tmp_path: Path) -> None:
    more = {"llama.attention.scale": 0.3, "general.sampling.temp": 0.7, "tokenizer.ggml.fim_pre_token_id": 5}
    opened = open_checkpoint(str(write_gguf(make_model("llama"), tmp_path / "m.gguf", metadata=more)))
    told = [str(parts) for parts in opened.unused.parts]
    assert told == [
        "m.gguf: llama.attention.scale: not used: no setting of transformers' model stands for them",
        "m.gguf: tokenizer.ggml.fim_pre_token_id, general.sampling.temp: not used: engines have nothing that takes them",
    ]


def test_a_directory_with_two_formats_names_both(tmp_path: Path) -> None:
    save_checkpoint("qwen2", tmp_path)
    file = write_gguf(make_model("qwen2"), tmp_path / "m.gguf")
    with pytest.raises(
        ExportError, match=r"is gguf and safetensors at once, expected one format; .* pass the path of the one"
    ):
        find_source(tmp_path)
    assert find_source(file).name == "gguf"


def test_a_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    file = write_gguf(make_model("qwen2"), tmp_path / "m.gguf")
    assert find_source(file.rename(tmp_path / "model")).name == "gguf"
    (tmp_path / "note.txt").write_text("no checkpoint")
    with pytest.raises(ExportError, match="known format"):
        find_source(tmp_path / "note.txt")


@pytest.mark.native
@pytest.mark.slow
def test_an_engine_of_a_file(tmp_path: Path) -> None:
    model = make_model("llama")
    file = write_gguf(model, tmp_path / "tiny.gguf", kinds={"attn_q": "Q4_1", "ffn": "Q8_0"})
    manifest = build(str(file), tmp_path / "engine", Recipe(max_batch=2, max_context=64), "onnxruntime")
    assert manifest.model.family == "llama"
    expected = load_reference(str(file), ()).generate(TOKENS[:, :9], max_new_tokens=12, do_sample=False, pad_token_id=0)
    with load(tmp_path / "engine", threads=1) as llm:
        got = llm.generate([TOKENS[0, :9].tolist()], Sampling(max_tokens=12, ignore_eos=True))[0].token_ids
    assert list(got) == expected[0, 9:].tolist()
    assert json.loads((tmp_path / "engine/reports/unused.json").read_text()) == []
