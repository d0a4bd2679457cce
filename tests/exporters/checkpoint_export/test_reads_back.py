"""Tests that an engine of an exported checkpoint is that of the source with the same method: codes, graph and logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import load_skeleton
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime import cli
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from tests.support.exporters.families import save_checkpoint
from tests.support.exporters.fixtures import EngineMaker

SHORT = "sequences=2,length=16"
IDS = list(range(3, 43))
# Format, options of the method, and the type of codes that the exported checkpoint is said to have.
CASES = [
    ("compressed-tensors", "bits=2,group_size=32", "int2 in groups of 32"),
    ("compressed-tensors", "bits=2,group_size=0", "int2 with one scale a row"),
    ("compressed-tensors", "bits=3,group_size=16,signed=false", "int3 in groups of 16"),
    ("compressed-tensors", "bits=4,group_size=32", "int4 in groups of 32"),
    ("compressed-tensors", "bits=4,group_size=32,scale_type=bfloat16", "int4 in groups of 32"),
    ("compressed-tensors", "bits=8,group_size=0", "int8 with one scale a row"),
    ("modelopt", "bits=2,group_size=0", "int2 with one scale a row"),
    ("modelopt", "bits=3,group_size=64", "int3 in groups of 64"),
    ("modelopt", "bits=4,group_size=64,signed=false", "int4 in groups of 64"),
    ("modelopt", "bits=4,group_size=0", "int4 with one scale a row"),
    ("modelopt", "bits=8,group_size=0", "int8 with one scale a row"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint whose rows are made of groups of 64."""
    path = tmp_path_factory.mktemp("source") / "qwen2"
    save_checkpoint("qwen2", path, hidden_size=128, intermediate_size=192)
    AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16").save_pretrained(path)
    return path


def write(source: Path, output: Path, format_name: str, options: str) -> Path:
    """Export the checkpoint with the method."""
    arguments = ["--model", str(source), "--output", str(output), "--format", format_name]
    assert cli.main(["export-checkpoint", *arguments, "--apply", f"piso:{SHORT},{options}"]) == 0
    return output


def bound(model: Path, applied: Applied | None = None) -> dict[str, Weight]:
    """The weights of an engine of `model`."""
    checkpoint = open_checkpoint(str(model))
    skeleton = load_skeleton(checkpoint, attention="eager", max_context=1).model
    weights = bind_parameters(checkpoint, skeleton, restored="")
    return weights if applied is None else applied.transform_weights(weights, checkpoint)


@pytest.mark.parametrize(("format_name", "options", "told"), CASES)
def test_codes_are_those_of_the_method(
    format_name: str, options: str, told: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(source, tmp_path / "m", format_name, options)
    direct, read = bound(source, parse_method(f"piso:{SHORT},{options}")), bound(model)
    found = 0
    for name, weight in direct.items():
        rows, again = weight.quantized, read[name].quantized
        assert (rows is None) == (again is None)
        if rows is None or again is None:
            np.testing.assert_array_equal(read[name].load(), weight.load())
            continue
        assert read[name].form == weight.form and open_checkpoint(str(model)).tensors[name].codes == told
        for left, right in zip(rows.load(), again.load(), strict=True):
            np.testing.assert_array_equal(left, right)
        found += 1
    assert found == 14
    assert ("are stored as float32" in capsys.readouterr().err) == ("scale_type" not in options)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(("format_name", "options"), [CASES[0][:2], CASES[8][:2]])
def test_the_engine_is_that_of_the_method(
    format_name: str, options: str, source: Path, tmp_path: Path, engine: EngineMaker
) -> None:
    model = write(source, tmp_path / "m", format_name, options)
    applied = (parse_method(f"piso:{SHORT},{options}"),)
    stored, given = parse_weights("stored:compute=int8"), {"max_batch": 2, "max_context": 64}
    roots = [
        engine(source, Recipe(apply=applied, weights=stored, **given))[0],
        engine(model, Recipe(weights=stored, **given))[0],
    ]
    logits = []
    for root in roots:
        with load(root, threads=1) as llm:
            logits.append(llm.logits(IDS))
    np.testing.assert_array_equal(*logits)
    for left, right in zip(*(sorted((root / "graphs").iterdir()) for root in roots), strict=True):
        assert left.name == right.name and left.read_bytes() == right.read_bytes()


@pytest.mark.parametrize("format_name", ["compressed-tensors", "modelopt"])
def test_the_record_of_widened_codes(format_name: str, source: Path, tmp_path: Path) -> None:
    model = write(source, tmp_path / "m", format_name, "bits=2,group_size=0")
    record = json.loads((model / "enginewright.json").read_text())
    assert set(record["code_bits"].values()) == {2} and len(record["code_bits"]) == 14
    name = "model.layers.0.mlp.up_proj"
    for content, bits in ((None, 4), (2, 2)):
        changed = {**record, "code_bits": {} if content is None else {name: content}}
        (model / "enginewright.json").write_text(json.dumps(changed))
        rows = open_checkpoint(str(model)).codes(f"{name}.weight")
        assert rows is not None and rows.bits == bits
    for wrong in ([2], {name: 9}, {name: "2"}):
        (model / "enginewright.json").write_text(json.dumps({"code_bits": wrong}))
        with pytest.raises(ExportError, match=r"enginewright.json: code_bits: got .*expected a number from 2 to 7"):
            open_checkpoint(str(model))


@pytest.mark.parametrize("format_name", ["compressed-tensors", "modelopt"])
def test_a_record_of_other_codes(format_name: str, source: Path, tmp_path: Path) -> None:
    model = write(source, tmp_path / "m", format_name, "bits=4,group_size=0")
    assert "code_bits" not in json.loads((model / "enginewright.json").read_text())
    name = "model.layers.0.mlp.up_proj"
    (model / "enginewright.json").write_text(json.dumps({"code_bits": {name: 2}}))
    rows = open_checkpoint(str(model)).codes(f"{name}.weight")
    assert rows is not None
    with pytest.raises(ExportError, match=rf"code_bits: got 2 for '{name}', whose codes need more; take the file out"):
        rows.load()


def test_what_is_read_can_be_written_again(source: Path, tmp_path: Path) -> None:
    """A method gets the numbers that the codes stand for, and the settings of the codes do not come along."""
    model = write(source, tmp_path / "m", "modelopt", "bits=4,group_size=64")
    again = write(model, tmp_path / "again", "compressed-tensors", "bits=8,group_size=0,scales=absmax,correction=none")
    assert not (again / "hf_quant_config.json").exists()
    first, second = open_checkpoint(str(model)), open_checkpoint(str(again))
    assert second.format.name == "compressed-tensors"
    for name in first.tensors:
        expected = first.read(name)
        assert (
            second.read(name) - expected
        ).abs().max() <= expected.abs().max() / 127  # the largest code is one less than the scale asks for
