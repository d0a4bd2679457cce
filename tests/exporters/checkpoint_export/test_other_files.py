"""Tests of the files of an exported checkpoint that belong together: config, index, tokenizer, and what an adapter held."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.source.formats.safetensors import INDEX
from enginewright.runtime import cli
from tests.support.exporters.adapters import load_with_peft, random_adapter, train_with_peft
from tests.support.exporters.checkpoints import bind, edit_config, edit_tensors, model, sharded

__all__ = ["model", "sharded"]

TOKENS = torch.arange(3, 43)[None] * 5 % 250


def merge(source: Path, output: Path, adapter: Path) -> None:
    """Run the command."""
    assert (
        cli.main(
            ["export-checkpoint", "--model", str(source), "--output", str(output), "--apply", f"lora:path={adapter}"]
        )
        == 0
    )


def load(path: Path) -> PreTrainedModel:
    """The model as transformers loads it."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return loaded.eval()


def adapt(source: Path, root: Path, *modules: str, **settings: object) -> Path:
    """An adapter of the model in `source`."""
    return train_with_peft(load(source), root, target_modules=list(modules), **settings)


def test_every_file_of_a_tokenizer_is_copied(model: Path, tmp_path: Path) -> None:
    names = {"spiece.model", "qwen.tiktoken", "tekken.json", "vocab.txt", "tokenizer.model.v3"}
    for name in names:
        (model / name).write_bytes(name.encode())
    merge(model, tmp_path / "out", adapt(model, tmp_path / "adapter", "q_proj"))
    assert all((tmp_path / "out" / name).read_bytes() == name.encode() for name in names)


def test_an_index_of_another_name_gets_the_usual_one(sharded: Path, tmp_path: Path) -> None:
    (sharded / INDEX).rename(sharded / "own.safetensors.index.json")
    edit_config(sharded, transformers_weights="own.safetensors.index.json")
    merge(sharded, tmp_path / "out", adapt(sharded, tmp_path / "adapter", "q_proj"))
    assert not any(
        load(tmp_path / "out").state_dict()[name].ne(tensor).any() for name, tensor in bind(tmp_path / "out").items()
    )


@pytest.mark.parametrize("adapted", ["lm_head", "embed_tokens"])
def test_one_of_two_tied_tensors_may_change(adapted: str, model: Path, tmp_path: Path) -> None:
    """The config says from then on that they are not tied, so that every server reads both."""
    embedding = "model.embed_tokens.weight"
    edit_tensors(model, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    adapter = adapt(model, tmp_path / "adapter", adapted)
    merge(model, tmp_path / "out", adapter)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    with torch.no_grad():
        expected = load_with_peft(load(model), adapter)(input_ids=TOKENS).logits
        assert (load(tmp_path / "out")(input_ids=TOKENS).logits - expected).abs().max() < 1e-5
    assert not torch.equal(bind(tmp_path / "out")["lm_head.weight"], bind(tmp_path / "out")[embedding])


def test_what_is_neither_used_nor_copied_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_tensors(model, lambda tensors: tensors.update({"model.mtp.weight": torch.ones(2)}))
    adapter = random_adapter(load(model), {"model.layers.0.self_attn.q_proj"}, alpha_pattern={"no_such": 3})
    merge(model, tmp_path / "out", adapter.save(tmp_path / "adapter"))
    err = capsys.readouterr().err
    assert "adapter/adapter_config.json: no_such: not used" in err and "mtp" not in err
