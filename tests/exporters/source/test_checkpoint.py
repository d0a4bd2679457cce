"""Tests of checkpoints on disk: refusals and their messages, and equal values from every form of storage."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source import checkpoint as checkpoints
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.formats.safetensors import WEIGHTS
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.registry import TOKENIZER_PATTERNS
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.runtime.errors import EnginewrightError, ExportError
from tests.support.exporters.checkpoints import assert_same, bind, edit_config, edit_tensors, shards, truncate
from tests.support.exporters.families import make_model

ONE_FILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (
        lambda m: (m / WEIGHTS).unlink(),
        rf"model: got no checkpoint of a known format, expected one of: .*safetensors \(a directory with .* {WEIGHTS}",
    ),
    "empty weights": (lambda m: truncate(m / WEIGHTS, 0), rf"{WEIGHTS}: not a whole safetensors file"),
    "header cut off": (lambda m: truncate(m / WEIGHTS, 100), rf"{WEIGHTS}: not a whole safetensors file"),
    "data cut off": (
        lambda m: truncate(m / WEIGHTS, (m / WEIGHTS).stat().st_size - 1),
        rf"{WEIGHTS}: not a whole safetensors file .*download it again",
    ),
    "header is no JSON": (
        lambda m: (m / WEIGHTS).write_bytes((8).to_bytes(8, "little") + b"rubbish!" + bytes(64)),
        rf"{WEIGHTS}: not a whole safetensors file",
    ),
    "header of absurd length": (
        lambda m: (m / WEIGHTS).write_bytes(b"\xff" * 64),
        rf"{WEIGHTS}: not a whole safetensors file",
    ),
    "weights are a directory": (
        lambda m: ((m / WEIGHTS).unlink(), (m / WEIGHTS).mkdir()),
        rf"{WEIGHTS}: not found",
    ),
    "no config": (
        lambda m: (m / "config.json").unlink(),
        r"config.json: not found; expected a Hugging Face checkpoint",
    ),
    "broken config": (lambda m: truncate(m / "config.json", 30), r"config.json: not valid JSON"),
    "config is no object": (lambda m: (m / "config.json").write_text("[]"), r"config.json: got a JSON list"),
    "config of wrong types": (
        lambda m: edit_config(m, hidden_size="wide"),
        r"config.json: transformers cannot read it",
    ),
    "broken generation config": (
        lambda m: (m / "generation_config.json").write_text("{"),
        r"generation_config.json: not valid JSON",
    ),
    "pickled weights": (
        lambda m: (m / WEIGHTS).rename(m / "pytorch_model.bin"),
        r"no checkpoint of a known format \(pytorch_model.bin is a pickle, which can run code when read: convert it",
    ),
}


@pytest.mark.parametrize("case", ONE_FILE)
def test_damage_is_named_and_nothing_is_written(case: str, model: Path, tmp_path: Path) -> None:
    damage, message = ONE_FILE[case]
    damage(model)
    with pytest.raises(EnginewrightError, match=message):
        build(str(model), tmp_path / "engine", Recipe(), "onnxruntime")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


MISFITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another size in the config": (
        lambda m: edit_config(m, intermediate_size=97),
        r"'model.layers.0.mlp.\w+_proj.weight' got shape \[.*96.*\] from the checkpoint, expected \[.*97.*config.json",
    ),
    "more layers in the config": (
        lambda m: edit_config(m, num_hidden_layers=3, layer_types=None),
        r"parameter 'model.layers.2.\S+' has no tensor in the checkpoint; config.json and the weights disagree",
    ),
    "a missing parameter": (
        lambda m: edit_tensors(m, lambda t: t.pop("model.layers.1.self_attn.q_proj.bias")),
        r"parameter 'model.layers.1.self_attn.q_proj.bias' has no tensor",
    ),
    "a transposed tensor": (
        lambda m: edit_tensors(m, lambda t: t.update({k: t[k].T.contiguous() for k in [DOWN]})),
        r"down_proj.weight' got shape \[96, 64\] from the checkpoint, expected \[64, 96\]",
    ),
    "integers": (
        lambda m: edit_tensors(m, lambda t: t.update({DOWN: t[DOWN].to(torch.int8)})),
        r"down_proj.weight' got type I8, expected one of F64, F32, F16, BF16; pass the unquantised",
    ),
    "untied config without an output projection": (
        lambda m: edit_config(m, tie_word_embeddings=False),
        r"parameter 'lm_head.weight' has no tensor",
    ),
    "tied config with two different matrices": (
        lambda m: edit_tensors(m, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})),
        r"'lm_head.weight' and 'model.embed_tokens.weight' differ.*tie_word_embeddings",
    ),
}
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize("case", MISFITS)
def test_config_and_weights_that_disagree(case: str, model: Path) -> None:
    damage, message = MISFITS[case]
    damage(model)
    with pytest.raises(ExportError, match=message):
        bind(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_types_read_alike(dtype: torch.dtype, model: Path) -> None:
    expected = {name: tensor.to(dtype).float() for name, tensor in bind(model).items()}
    edit_tensors(model, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()}))
    assert_same(bind(model), expected)


def test_shards_equal_one_file(model: Path, sharded: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    make_model("qwen2").save_pretrained(single)
    assert len(shards(sharded)) > 2
    assert_same(bind(sharded), bind(single))


def test_a_tied_matrix_may_be_stored_twice(model: Path) -> None:
    expected = bind(model)
    edit_tensors(model, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert_same(bind(model), expected)


def test_tied_parameters_are_one_weight(model: Path) -> None:
    for _ in range(2):
        opened = open_checkpoint(str(model))
        skeleton = build_skeleton(opened.config, attention="eager", max_context=64)
        weights = bind_parameters(opened, skeleton.model)
        assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]
        edit_tensors(model, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))


def test_a_tied_matrix_may_be_stored_under_its_other_name(model: Path) -> None:
    expected = bind(model)
    edit_tensors(model, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert_same(bind(model), expected)


def test_a_tensor_that_becomes_unreadable(model: Path) -> None:
    opened = open_checkpoint(str(model))
    truncate(model / WEIGHTS, 200)
    with pytest.raises(ExportError, match=r"model.safetensors: tensor 'model.norm.weight' cannot be read"):
        opened.read("model.norm.weight")


def test_a_tensor_that_is_not_finite(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, model / WEIGHTS, {"format": "pt"})
    with pytest.raises(ExportError, match=r"tensor 'model.norm.weight' holds NaN or infinity"):
        open_checkpoint(str(model)).read("model.norm.weight")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/directory", "got no file or directory, expected a checkpoint or a hub id like owner/name"),
        ("./model", "got no file or directory"),
        ("nonesuch", "got no file or directory"),
        ("a/b/c", "got no file or directory"),
        ("", "model: got an empty name, expected a checkpoint's path or a hub id"),
        ("models/x.gguf", "models/x.gguf: got no file or directory"),
        ("owner/model.safetensors", "got no file or directory"),
    ],
)
def test_what_is_no_place_never_asks_the_hub(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ExportError, match=message):
        open_checkpoint(name)


def test_a_file_is_no_checkpoint(model: Path) -> None:
    with pytest.raises(ExportError, match=r"model.safetensors: got no checkpoint of a known format, expected one of"):
        open_checkpoint(str(model / WEIGHTS))


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no route"), HFValidationError("no route"), OSError("no route")]
)
def test_a_hub_out_of_reach(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(
        ExportError, match=r"owner/name: no such file or directory, and the hub did not provide it \(no route\)"
    ):
        open_checkpoint("owner/name")


def test_the_hub_is_asked_for_every_kind_of_tokenizer_file() -> None:
    patterns = ["*.json", *TOKENIZER_PATTERNS]
    names = [
        "tokenizer.model",
        "vocab.txt",
        "merges.txt",
        "vocab.json",
        "qwen.tiktoken",
        "additional_chat_templates/a.jinja",
    ]
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for name in names)


def test_the_hub_is_asked_for_no_pickle(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[str]] = {}

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert checkpoints.open_checkpoint("owner/name").path == model
    assert asked == {"owner/name": ["*.json", "*.safetensors", *TOKENIZER_PATTERNS]}
