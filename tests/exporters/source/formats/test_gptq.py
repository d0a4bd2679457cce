"""Tests of GPTQ checkpoints: every layout against a bit-by-bit oracle, what is kept, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.checkpoints import edit_config, edit_tensors
from tests.support.exporters.families import save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.exporters.packed_checkpoints import (
    Integers,
    Parts,
    gptq_parts,
    random_integers,
    seed_of,
    words,
    write_twins,
)

NAME = "model.layers.1.mlp.down_proj"
SETTINGS: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": False,
    "sym": False,
    "checkpoint_format": "gptq",
}


def write(model: Path, root: Path, *, with_groups: bool = True, **changes: Any) -> tuple[Path, Path]:
    """A GPTQ checkpoint of all projections, and its twin; changes: of the settings."""
    settings = {**SETTINGS, **changes}

    def pack(name: str, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
        made = random_integers(
            *shape[-2:],
            seed_of(name),
            bits=settings["bits"],
            group_size=settings["group_size"],
            symmetric=settings["sym"],
            act_order=settings["desc_act"],
        )
        first = settings["checkpoint_format"] == "gptq"
        return gptq_parts(made, first_format=first, with_groups=with_groups), made.numbers

    return write_twins(model, root, pack, settings)


@pytest.fixture(scope="module")
def written(checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with reordered groups; tests that damage it copy it."""
    return write(checkpoint("qwen2"), tmp_path_factory.mktemp("gptq"), desc_act=True)[0]


@pytest.fixture
def packed(written: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "model"))


def assert_equals_twin(packed: Path, twin: Path) -> Checkpoint:
    """Tensors have the names, shapes and numbers of the twin's, and codes stand for the same numbers."""
    got, expected = open_checkpoint(str(packed)), open_checkpoint(str(twin))
    assert got.tensors.keys() == expected.tensors.keys()
    kept = 0
    for name, stored in got.tensors.items():
        values = expected.read(name).numpy()
        np.testing.assert_array_equal(got.read(name).numpy(), values, err_msg=name)
        assert stored.shape == values.shape and bool(stored.codes) == name.endswith("_proj.weight")
        rows = got.codes(name)
        assert (rows is not None) == bool(stored.codes)
        if rows is not None:
            np.testing.assert_array_equal(rows.restore(), values)
            codes, scales = rows.load()
            assert codes.dtype == np.int8 and scales.dtype == np.float32
            kept += 1
    assert kept
    return got


CASES: dict[str, dict[str, Any]] = {
    "2 bits": {"bits": 2},
    "3 bits": {"bits": 3, "group_size": 16},
    "3 bits, symmetric": {"bits": 3, "sym": True},
    "8 bits": {"bits": 8, "checkpoint_format": "gptq_v2"},
    "whole rows": {"group_size": -1, "sym": True},
    "act-order": {"desc_act": True},
    "act-order, symmetric, second format": {"desc_act": True, "sym": True, "checkpoint_format": "gptq_v2"},
    "no groups stored": {"with_groups": False},
}


@pytest.mark.parametrize("case", CASES)
def test_every_layout_equals_its_twin(case: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    changes = CASES[case]
    got = assert_equals_twin(*write(checkpoint("qwen2"), tmp_path, **changes))
    assert got.format.name == "gptq"
    rows = got.codes(f"{NAME}.weight")
    assert rows is not None
    assert rows.bits == changes.get("bits", 4)
    assert rows.group_size == (96 if changes.get("group_size") == -1 else changes.get("group_size", 32))
    assert rows.offset == ("" if changes.get("sym") else "zero_points")
    assert (rows.order is not None) == changes.get("desc_act", False)


def test_the_settings_and_the_parts_do_not_reach_the_model(packed: Path) -> None:
    opened = open_checkpoint(str(packed))
    assert not hasattr(opened.config, "quantization_config") and b"quantization_config" not in opened.read_file(
        "config.json"
    )
    assert not [name for name in opened.tensors if "qweight" in name or "g_idx" in name]
    assert f"{NAME.replace('mlp.down', 'self_attn.q')}.bias" in opened.tensors
    stored = opened.tensors[f"{NAME}.weight"]
    assert stored.codes == "GPTQ of 4 bits in groups of 32" and not stored.restored
    assert len(b"".join(opened.content(f"{NAME}.weight"))) == stored.size


def put(packed: Path, made: Integers, parts: Parts) -> None:
    """Replace the parts of one matrix."""
    assert made.codes.shape == (64, 96)
    edit_tensors(packed, lambda tensors: tensors.update({f"{NAME}.{part}": value for part, value in parts.items()}))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_zero_point_of_0_in_the_first_format(bits: int, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """It is stored as the highest code: by AutoGPTQ alone, by GPTQModel with a borrow from the next one of the word."""
    packed, _ = write(checkpoint("qwen2"), tmp_path, bits=bits)
    made = random_integers(64, 96, 5, bits=bits, group_size=32)
    made.zeros[::4] = 0
    stored = (made.zeros.T - 1) % (1 << bits)
    put(packed, made, {**gptq_parts(made, first_format=False), "qzeros": words(stored, bits)})
    np.testing.assert_array_equal(open_checkpoint(str(packed)).read(f"{NAME}.weight").numpy(), made.numbers)
    if bits == 3:
        edit_config(packed, quantization_config={**SETTINGS, "bits": 3, "meta": {"quantizer": ["gptqmodel:4.0.0"]}})
        np.testing.assert_array_equal(open_checkpoint(str(packed)).read(f"{NAME}.weight").numpy(), made.numbers)
        return
    ones = sum(1 << place for place in range(0, 32, bits))
    borrowed = (words(made.zeros.T, bits).numpy().view(np.uint32) - np.uint32(ones)).view(np.int32)
    put(packed, made, {**gptq_parts(made, first_format=False), "qzeros": torch.from_numpy(borrowed)})
    meta = {"quantizer": ["gptqmodel:2.0.0"]}
    edit_config(packed, quantization_config={**SETTINGS, "bits": bits, "meta": meta})
    np.testing.assert_array_equal(open_checkpoint(str(packed)).read(f"{NAME}.weight").numpy(), made.numbers)


@pytest.mark.parametrize(("named", "other"), [("gptq", "gptq_v2"), ("gptq_v2", "gptq")])
def test_zero_points_of_the_other_format_are_an_error(
    named: str, other: str, checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    """Read in the wrong format, all zero points of a symmetric checkpoint are 1 off the middle."""
    packed = write(checkpoint("qwen2"), tmp_path, sym=True, checkpoint_format=other)[0]
    edit_config(packed, quantization_config={**SETTINGS, "sym": True, "checkpoint_format": named})
    got = 9 if named == "gptq" else 7
    with pytest.raises(
        ExportError, match=rf"qzeros' got zero points of {got} .*, expected 8, .* set checkpoint_format to {other}"
    ):
        bind_parameters(
            open_checkpoint(str(packed)),
            build_skeleton(open_checkpoint(str(packed)).config, attention="eager", max_context=64).model,
        )
    edit_config(packed, quantization_config={**SETTINGS, "sym": False, "checkpoint_format": named})
    rows = open_checkpoint(str(packed)).codes(f"{NAME}.weight")
    assert rows is not None and rows.offset == "zero_points"  # nothing says that it is wrong


def test_settings_in_a_file_of_their_own(packed: Path) -> None:
    """Old versions of AutoGPTQ wrote quantize_config.json, and nothing into config.json."""
    expected = open_checkpoint(str(packed)).read(f"{NAME}.weight")
    settings = json.loads((packed / "config.json").read_text())["quantization_config"]
    edit_config(packed, quantization_config=None)
    old = {name: settings[name] for name in ("bits", "group_size", "desc_act", "sym")}
    (packed / "quantize_config.json").write_text(json.dumps(old))
    got = open_checkpoint(str(packed))
    assert got.format.name == "gptq" and torch.equal(got.read(f"{NAME}.weight"), expected)
    (packed / "quantize_config.json").write_text(json.dumps({**old, "bits": 5}))
    with pytest.raises(UnsupportedError, match=r"/quantize_config.json: quantisation.bits got 5, expected 2 or 3"):
        open_checkpoint(str(packed))


def test_groups_of_different_sizes_become_numbers(packed: Path) -> None:
    made = random_integers(64, 96, 7, bits=4, group_size=32)
    made.groups[:] = np.random.default_rng(1).integers(0, 3, 96)
    made.groups[:2] = 0, 1
    put(packed, made, gptq_parts(made))
    opened = open_checkpoint(str(packed))
    assert opened.codes(f"{NAME}.weight") is None
    np.testing.assert_array_equal(opened.read(f"{NAME}.weight").numpy(), made.numbers)
    model = build_skeleton(opened.config, attention="eager", max_context=64).model
    weight = bind_parameters(opened, model, restored="")[f"{NAME}.weight"]
    assert (
        weight.stored is not None
        and weight.stored.restored == "its groups differ in size, which no form of codes expresses"
    )
    np.testing.assert_array_equal(weight.load(), made.numbers)


def test_modules_with_settings_of_their_own(packed: Path) -> None:
    made = random_integers(64, 96, 3, bits=8, group_size=16)
    put(packed, made, gptq_parts(made))
    first = {"-:.*lm_head": {}, r"+:.*\.1\.mlp\.down_proj": {"bits": 8, "group_size": 16}}
    dynamic = {
        **first,
        r".*\.1\.mlp\.down_proj": {"bits": 2},
        "layers.1": {"bits": 3},
    }  # one counts, from the name's beginning
    edit_config(packed, quantization_config={**SETTINGS, "desc_act": True, "dynamic": dynamic})
    opened = open_checkpoint(str(packed))
    assert opened.tensors[f"{NAME}.weight"].codes == "GPTQ of 8 bits in groups of 16"
    np.testing.assert_array_equal(opened.read(f"{NAME}.weight").numpy(), made.numbers)


def test_a_module_without_codes_and_a_quantised_output_projection(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """Llama is not tied; its hidden size of 60 is no multiple of 32, so this one has its own sizes."""
    save_checkpoint("mistral", tmp_path / "model", vocab_size=256)

    def pack(name: str, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
        made = random_integers(*shape[-2:], seed_of(name), bits=4, group_size=32)
        return gptq_parts(made), made.numbers

    packed, twin = write_twins(tmp_path / "model", tmp_path, pack, SETTINGS, ends=("lm_head.weight", "up_proj.weight"))
    got, expected = open_checkpoint(str(packed)), open_checkpoint(str(twin))
    assert got.tensors["lm_head.weight"].codes and not got.tensors["model.layers.0.mlp.down_proj.weight"].codes
    for name in expected.tensors:
        np.testing.assert_array_equal(got.read(name).numpy(), expected.read(name).numpy())


def test_auto_round_in_the_layout_of_gptq(packed: Path) -> None:
    expected = open_checkpoint(str(packed)).read(f"{NAME}.weight")
    made = random_integers(64, 96, 3, bits=2, group_size=32)
    edit_config(
        packed,
        quantization_config={
            "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq",
            "bits": 4,
            "group_size": 32,
            "extra_config": {"lm_head": {"bits": 16}, NAME: {"bits": 2}},
        },
    )
    other = f"{NAME.replace('.1.', '.0.')}.weight"
    put(packed, made, gptq_parts(made))
    opened = open_checkpoint(str(packed))
    assert opened.format.name == "gptq" and opened.tensors[other].codes == "GPTQ of 4 bits in groups of 32"
    assert not torch.equal(opened.read(f"{NAME}.weight"), expected)
    np.testing.assert_array_equal(opened.read(f"{NAME}.weight").numpy(), made.numbers)


SETTING_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "bits": (
        {"bits": 5},
        r"config.json: quantization_config.bits got 5, expected 2 or 3 or 4 or 8; pass the unquantised",
    ),
    "no bits": ({"bits": None}, "bits got None, expected 2 or 3"),
    "group size": (
        {"group_size": 40},
        r"group_size got 40, expected -1 or a divisor of the \d+ inputs of 'model.layers",
    ),
    "group size of 0": ({"group_size": 0}, "group_size got 0, expected -1 or a divisor"),
    "other group size": (
        {"group_size": 16},
        r"tensor '.*qzeros' got I32 \[\d, \d+\], expected I32 \[\d, \d+\] as 4 bits in groups of 16 need",
    ),
    "marlin": ({"checkpoint_format": "marlin"}, "checkpoint_format got 'marlin', expected gptq or gptq_v2; pass a"),
    "marlin, as of old": ({"is_marlin_format": True}, "checkpoint_format got 'marlin', expected gptq or gptq_v2"),
    "planar": ({"checkpoint_format": "gptq_p"}, "checkpoint_format got 'gptq_p'"),
    "more bits than stored": ({"bits": 8}, "a divisor of the 48 inputs of 'model.layers"),
    "floats of AutoRound": (
        {"quant_method": "auto-round", "packing_format": "auto_gptq", "data_type": "mx_fp"},
        "data_type got 'mx_fp', expected int",
    ),
    "a bad pattern": ({"dynamic": {"+:(": {}}}, r"dynamic got '\+:\(', expected a regular expression"),
    "a list of patterns": ({"dynamic": ["x"]}, r"dynamic got \['x'\], expected settings by the names of modules"),
    "settings that are none": ({"dynamic": {".*": 4}}, r"dynamic '\.\*' got 4, expected settings"),
    "excluded": (
        {"dynamic": {"-:.*down_proj": {}}},
        r"dynamic '-:.*down_proj' leaves '.*' as numbers, but the checkpoint has",
    ),
}


@pytest.mark.parametrize("case", SETTING_FAULTS)
def test_settings_that_are_refused(case: str, packed: Path) -> None:
    changes, message = SETTING_FAULTS[case]
    edit_config(packed, quantization_config={**SETTINGS, "desc_act": True, **changes})
    with pytest.raises((ExportError, UnsupportedError), match=message) as caught:
        open_checkpoint(str(packed))
    assert str(caught.value).startswith(str(packed))


def without(part: str) -> Any:
    """A change that takes a part of one matrix out."""
    return lambda tensors: tensors.pop(f"{NAME}.{part}")


def as_type(part: str, dtype: torch.dtype) -> Any:
    """A change of the type of a part of one matrix."""
    return lambda tensors: tensors.update({f"{NAME}.{part}": tensors[f"{NAME}.{part}"].to(dtype)})


def cut(part: str) -> Any:
    """A change that takes the last row off a part of one matrix."""
    return lambda tensors: tensors.update({f"{NAME}.{part}": tensors[f"{NAME}.{part}"][:-1].contiguous()})


TENSOR_FAULTS: dict[str, tuple[Any, str]] = {
    "no zero points": (without("qzeros"), r"tensor '.*qzeros' is missing, expected \[3, 8\]; download"),
    "no scales": (without("scales"), r"tensor '.*scales' is missing, expected \[3, 64\]"),
    "no groups": (
        without("g_idx"),
        "tensor '.*g_idx' is missing, but quantization_config.desc_act reorders inputs by it",
    ),
    "fewer groups": (cut("scales"), r"tensor '.*scales' got F16 \[2, 64\], expected F16 or BF16 or F32 \[3, 64\]"),
    "fewer group numbers": (cut("g_idx"), r"tensor '.*g_idx' got I32 \[95\], expected I32 or I64 \[96\]"),
    "other words": (as_type("qweight", torch.int16), "tensor '.*qweight' got I16 .*, expected a matrix of I32"),
    "scales of integers": (as_type("scales", torch.int32), "tensor '.*scales' got I32"),
}


@pytest.mark.parametrize("case", TENSOR_FAULTS)
def test_tensors_that_are_refused(case: str, packed: Path) -> None:
    change, message = TENSOR_FAULTS[case]
    edit_tensors(packed, change)
    with pytest.raises(ExportError, match=message) as caught:
        open_checkpoint(str(packed))
    assert str(caught.value).startswith(str(packed))


def test_contents_that_are_refused(packed: Path) -> None:
    def damage(part: str, value: float) -> None:
        edit_tensors(packed, lambda tensors: tensors[f"{NAME}.{part}"].view(-1).__setitem__(5, value))

    damage("scales", float("nan"))
    rows = open_checkpoint(str(packed)).codes(f"{NAME}.weight")
    assert rows is not None
    with pytest.raises(ExportError, match=rf"model.safetensors: tensor '{NAME}.scales' holds NaN or infinity"):
        rows.load()
    damage("g_idx", 3)
    with pytest.raises(ExportError, match=rf"tensor '{NAME}.g_idx' got group 3, expected 0 .. 2; the checkpoint"):
        open_checkpoint(str(packed)).codes(f"{NAME}.weight")


def move_to_missing_file(packed: Path, names: list[str]) -> None:
    """Let the index list the tensors `names` in a second file, which is not there."""
    edit_tensors(packed, lambda tensors: [tensors.pop(name) for name in names])
    (packed / "model.safetensors").rename(packed / "model-00001-of-00002.safetensors")
    listed = dict.fromkeys(load_file(packed / "model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors")
    listed.update(dict.fromkeys(names, "model-00002-of-00002.safetensors"))
    (packed / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))


def test_a_missing_file_is_named(packed: Path) -> None:
    """The index lists the parts of the last product in a file that is not there."""
    move_to_missing_file(packed, [f"{NAME}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")])
    opened = open_checkpoint(str(packed))
    model = build_skeleton(opened.config, attention="eager", max_context=64).model
    with pytest.raises(
        ExportError, match=rf"model-00002-of-00002.safetensors: tensor '{NAME}.weight' of parameter '{NAME}"
    ):
        bind_parameters(opened, model)


@pytest.mark.parametrize("part", ["scales", "g_idx"])
def test_a_missing_file_with_one_part_of_a_matrix_is_named(part: str, packed: Path) -> None:
    move_to_missing_file(packed, [f"{NAME}.{part}"])
    with pytest.raises(ExportError, match=rf"model-00002-of-00002.safetensors: tensor '{NAME}.{part}' is missing"):
        open_checkpoint(str(packed))


def test_the_reference_has_the_numbers_of_the_twin(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    ids = torch.arange(20)[None]
    with torch.no_grad():
        got, expected = (
            load_reference(str(path), ())(input_ids=ids).logits
            for path in write(checkpoint("qwen2"), tmp_path, desc_act=True)
        )
    assert torch.equal(got, expected)


def test_a_family_with_transposed_matrices_is_refused(packed: Path) -> None:
    edit_config(packed, model_type="gpt2")
    with pytest.raises(UnsupportedError, match=r"got quantised weights of gpt2, whose checkpoints keep matrices as"):
        open_checkpoint(str(packed))
