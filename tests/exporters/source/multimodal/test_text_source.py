"""Tests of the text part of multimodal checkpoints: its numbers, its names, and everything else in the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.formats.safetensors import INDEX, WEIGHTS, SafetensorsSource
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.unused import Unused
from enginewright.runtime import cli
from enginewright.runtime.errors import ExportError, UnsupportedError
from enginewright.runtime.loader import load
from tests.support.exporters.adapters import load_with_peft, random_adapter
from tests.support.exporters.checkpoints import edit_tensors
from tests.support.exporters.multimodal import CONTEXT, TYPES, rename, save_whole, whole_logits
from tests.support.exporters.packed_checkpoints import Parts, gptq_parts, random_integers, seed_of, write_twins

TOKENS = np.random.default_rng(0).integers(8, 240, CONTEXT - 10).tolist()  # more than a window has
OLD = "language_model.model.", "language_model.lm_head."
NEW = "model.language_model.", "lm_head."


def error_of(logits: np.ndarray, expected: np.ndarray) -> float:
    """The largest error as a part of the largest logit."""
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def reference_logits(path: Path) -> np.ndarray:
    """Logits of the text model that is filled from the checkpoint."""
    return whole_logits(load_reference(str(path), ()), TOKENS)


def starts(path: Path) -> set[str]:
    """The first two components of the names in a checkpoint of one file."""
    return {".".join(name.split(".")[:2]) for name in load_file(path / WEIGHTS)}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """A checkpoint and its whole model."""
    path = tmp_path_factory.mktemp("llava") / "model"
    return path, save_whole("llava", path)


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("model_type", TYPES)
def test_the_text_model_has_the_logits_of_the_whole_model(model_type: str, tied: bool, tmp_path: Path) -> None:
    whole = save_whole(model_type, tmp_path / "model", tied=tied)
    assert error_of(reference_logits(tmp_path / "model"), whole_logits(whole, TOKENS)) < 1e-5
    is_tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert is_tied == (tied and model_type != "qwen2_audio")  # whose class ties nothing, whatever its config says
    assert open_checkpoint(str(tmp_path / "model")).config.tie_word_embeddings is is_tied


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gemma3", "llava", "mistral3", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_an_engine_has_the_logits_of_the_whole_model(model_type: str, tmp_path: Path) -> None:
    whole = save_whole(model_type, tmp_path / "model", max_shard_size="100KB")
    manifest = build(
        str(tmp_path / "model"),
        tmp_path / "engine",
        Recipe(max_context=CONTEXT, kv_bits=32),
        "onnxruntime",
        strict=True,
    )
    assert json.loads((tmp_path / "engine/reports/trial.json").read_text())["kind"] == "logits"
    assert manifest.name == "model"
    with load(tmp_path / "engine", threads=1) as llm:
        assert error_of(llm.logits(TOKENS), whole_logits(whole, TOKENS)) < 1e-4


@pytest.mark.parametrize("start", [OLD, NEW], ids=["old names", "new names"])
def test_names_of_all_ages_are_read(
    start: tuple[str, str], llava: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    path, whole = llava
    copy = tmp_path / "model"
    whole.save_pretrained(copy)
    for new, old in zip(start, OLD, strict=True):
        rename(copy, old, new)
    assert {name.rstrip(".") for name in start if "lm_head" not in name} <= starts(copy)
    assert error_of(reference_logits(copy), whole_logits(whole, TOKENS)) < 1e-5
    assert open_checkpoint(str(copy)).tensors.keys() == open_checkpoint(str(path)).tensors.keys()


def test_a_text_part_may_lie_deep_inside(tmp_path: Path) -> None:
    """In a thinker: names as of a whole model that also speaks."""
    whole = save_whole("qwen2_5_omni_thinker", tmp_path / "model")
    rename(tmp_path / "model", "", "thinker." if not _has_thinker(tmp_path / "model") else "")
    assert starts(tmp_path / "model") >= {"thinker.model", "thinker.lm_head"}
    assert error_of(reference_logits(tmp_path / "model"), whole_logits(whole, TOKENS)) < 1e-5


def _has_thinker(path: Path) -> bool:
    return any(name.startswith("thinker.") for name in load_file(path / WEIGHTS))


def told(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], *, strict: bool) -> list[str]:
    """The lines about parts that are not used."""
    checkpoint.unused.settle(strict=strict)
    return capsys.readouterr().err.splitlines()


def test_other_parts_are_named_once_each_and_are_no_error_in_a_strict_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_whole("gemma3", tmp_path / "model")
    capsys.readouterr()
    by_design = "not used: an engine has the text part of a multimodal model alone"
    assert told(open_checkpoint(str(tmp_path / "model")), capsys, strict=True) == [
        f"model.safetensors: multi_modal_projector.* (2 tensors), vision_tower.* (32 tensors): {by_design}",
        f"preprocessor_config.json: every setting: {by_design}",
    ]


def test_parts_in_several_files_keep_their_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_whole("qwen2_audio", tmp_path / "model", max_shard_size="100KB")
    capsys.readouterr()
    lines = told(open_checkpoint(str(tmp_path / "model")), capsys, strict=True)
    counts = [int(line.partition("audio_tower.* (")[2].partition(" ")[0]) for line in lines if "audio_tower" in line]
    files = load_shards(tmp_path / "model")
    assert len(counts) > 1
    assert sum(counts) == sum(name.startswith("audio_tower") for names in files.values() for name in names)


def load_shards(path: Path) -> dict[str, list[str]]:
    """The names of each file."""
    return {file.name: list(load_file(file)) for file in sorted(path.glob("*.safetensors"))}


def test_a_tensor_that_the_whole_model_does_not_know_is_an_error_in_a_strict_build(
    llava: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    llava[1].save_pretrained(tmp_path / "model")
    edit_tensors(tmp_path / "model", lambda tensors: tensors.update({"language_model.extra.weight": torch.ones(2)}))
    found = open_checkpoint(str(tmp_path / "model"))
    with pytest.raises(
        ExportError, match=r"language_model.extra.weight: not used: no parameter or buffer of Llava"
    ) as e:
        found.unused.settle(strict=True)
    assert "vision_tower" not in str(e.value)


def test_a_checkpoint_without_its_text_part_is_refused(llava: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    llava[1].save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / WEIGHTS)
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith("language_model")}
    save_file(others, tmp_path / "model" / WEIGHTS, {"format": "pt"})
    with pytest.raises(
        UnsupportedError, match=r"model: got no tensor of the text part \(model.language_model\), expected"
    ):
        open_checkpoint(str(tmp_path / "model"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    save_whole("llava", tmp_path / "model", max_shard_size="100KB")
    index = json.loads((tmp_path / "model" / INDEX).read_text())["weight_map"]
    file = index["language_model.model.norm.weight"]
    (tmp_path / "model" / file).unlink()
    with pytest.raises(
        ExportError, match=rf"{file}: tensor 'model\..* is missing, and so is the file; download it again"
    ):
        load_reference(str(tmp_path / "model"), ())


class _Counting(SafetensorsSource):
    """A directory that notes what is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: list[tuple[str, int | None]] = []

    def read(self, name: str, part: int | None = None) -> torch.Tensor:
        self.reads.append((name, part))
        return super().read(name, part)


def turn_experts(path: Path) -> None:
    """Store experts as published checkpoints have them, [expert, input, output]; transformers does not save them so."""

    def turn(tensors: dict[str, torch.Tensor]) -> None:
        turned = {
            name: each.transpose(1, 2).contiguous()
            for name, each in tensors.items()
            if each.ndim == 3 and "experts" in name
        }
        assert turned
        tensors.update(turned)

    edit_tensors(path, turn)


def test_experts_that_are_stored_transposed_are_turned(tmp_path: Path) -> None:
    whole = save_whole("qwen3_vl_moe", tmp_path / "model")
    turn_experts(tmp_path / "model")
    assert error_of(reference_logits(tmp_path / "model"), whole_logits(whole, TOKENS)) < 1e-5


@pytest.mark.parametrize("case", ["as made", "transposed", "one by one"])
def test_one_expert_is_read_without_the_others(case: str, tmp_path: Path) -> None:
    whole = save_whole("qwen3_omni_moe_thinker" if case == "one by one" else "qwen3_vl_moe", tmp_path / "model")
    if case == "transposed":
        turn_experts(tmp_path / "model")
    opened = open_checkpoint(str(tmp_path / "model"))
    opened.source._inner = source = _Counting(tmp_path / "model")  # type: ignore[attr-defined]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    expected = whole.get_parameter(name.replace("model.", "model.language_model.", 1)).detach()
    assert torch.equal(opened.read(name), expected)
    for part in range(4):
        source.reads.clear()
        assert torch.equal(opened.read(name, part), expected[part : part + 1])
        if case == "one by one":
            assert [f".experts.{part}." in read for read, _ in source.reads] == [True, True]
        else:
            assert [number for _, number in source.reads] == [part]
    content = bytearray().join(opened.content(name))
    assert torch.equal(torch.frombuffer(content, dtype=torch.float32).reshape(expected.shape), expected)


def test_content_has_the_type_of_the_stored_tensors(tmp_path: Path) -> None:
    save_whole("qwen3_vl_moe", tmp_path / "model")
    turn_experts(tmp_path / "model")
    edit_tensors(
        tmp_path / "model", lambda tensors: tensors.update({name: each.bfloat16() for name, each in tensors.items()})
    )
    opened = open_checkpoint(str(tmp_path / "model"))
    name = "model.layers.1.mlp.experts.down_proj"
    stored = opened.tensors[name]
    content = bytearray().join(opened.content(name))
    assert (stored.dtype, stored.size) == ("BF16", len(content))
    values = torch.frombuffer(content, dtype=torch.bfloat16).reshape(stored.shape).float()
    assert torch.equal(values, opened.read(name))


@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_the_text_part_may_be_codes(nested: bool, llava: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    """A format of codes below the names of a text part; its settings are those of the whole, or of the part."""

    def pack(name: str, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
        made = random_integers(*shape, seed_of(name), bits=4, group_size=32)
        return gptq_parts(made), made.numbers

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
    packed, twin = write_twins(llava[0], tmp_path, pack, settings, ends=("up_proj.weight",))
    if nested:
        config = json.loads((packed / "config.json").read_text())
        config["text_config"]["quantization_config"] = config.pop("quantization_config")
        (packed / "config.json").write_text(json.dumps(config))
    name = "model.layers.0.mlp.up_proj.weight"
    opened, expected = open_checkpoint(str(packed)), open_checkpoint(str(twin))
    assert opened.codes(name) is not None
    assert torch.equal(opened.read(name), expected.read(name))
    assert error_of(reference_logits(packed), reference_logits(twin)) < 1e-6


def test_codes_of_the_source_are_passed_on(llava: tuple[Path, PreTrainedModel]) -> None:
    opened = open_checkpoint(str(llava[0]))
    asked: list[tuple[str, int | None]] = []

    class _Coded(SafetensorsSource):
        def codes(self, name: str, part: int | None = None) -> None:
            asked.append((name, part))

    opened.source._inner = _Coded(llava[0])  # type: ignore[attr-defined]
    assert opened.codes("model.layers.0.mlp.up_proj.weight") is None
    assert asked == [("language_model.model.layers.0.mlp.up_proj.weight", None)]


def test_an_exported_checkpoint_is_the_text_model_alone(
    llava: tuple[Path, PreTrainedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = llava
    text = load_reference(str(path), ())
    adapter = random_adapter(text, {"model.layers.0.self_attn.q_proj"}).save(tmp_path / "adapter")
    command = ["export-checkpoint", "--model", str(path), "--apply", f"lora:path={adapter}"]
    assert cli.main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "vision_tower.* (23 tensors): not used" in capsys.readouterr().err
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    expected = whole_logits(load_with_peft(text, adapter), TOKENS)  # type: ignore[arg-type]
    assert error_of(whole_logits(exported, TOKENS), expected) < 1e-5
    assert not (tmp_path / "out/preprocessor_config.json").exists()


def test_parts_left_out_by_design_are_told_apart_in_the_report(tmp_path: Path) -> None:
    unused = Unused()
    unused.add("model.safetensors", ["visual.* (3 tensors)"], "a reason", by_design=True)
    unused.save(tmp_path)
    assert json.loads((tmp_path / "reports/unused.json").read_text())[0]["by_design"] is True
