"""Tests of what a checkpoint of compressed-tensors is refused for when it is opened, by message, and of what is named as not used."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.exporters.quantized_files import Change, Stored, compress, drop, group, put, weights

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
GROUPS = {
    "packed": group("pack-quantized", ["re:.*self_attn.*"], weights(4, strategy="group", group_size=32, symmetric=False)),
    "bytes": group("int-quantized", ["Linear"], weights(8, strategy="channel")),
}  # fmt: skip


@pytest.fixture(scope="module")
def pristine(checkpoint: CheckpointMaker) -> Stored:
    """A checkpoint of two groups: packed codes with zero points in the attention, bytes in the rest."""
    return compress(
        checkpoint("qwen3"),
        GROUPS,
        lambda name: ("packed" if "self_attn" in name else "bytes") * name.endswith("_proj"),
        ("lm_head",),
    )


def fresh(stored: Stored) -> Stored:
    """A copy that a test may change."""
    return Stored(copy.deepcopy(stored.config), dict(stored.tensors), stored.twin)


def set_weights(name: str, **changes: Any) -> Change:
    """Changes settings of the weights of a group."""
    return lambda stored: stored.settings["config_groups"][name]["weights"].update(changes)


def set_all(**changes: Any) -> Change:
    """Changes settings of the whole."""
    return lambda stored: stored.settings.update(changes)


def set_group(name: str, **changes: Any) -> Change:
    """Changes settings of a group."""
    return lambda stored: stored.settings["config_groups"][name].update(changes)


def both(*changes: Change) -> Change:
    """Makes several changes."""

    def change(stored: Stored) -> None:
        for each in changes:
            each(stored)

    return change


def rotated(location: str) -> dict[str, Any]:
    """Settings of one rotation."""
    return {"config_groups": {"R": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": location}]}}}


REFUSED: dict[str, tuple[Change, str]] = {
    "sparse format": (set_group("bytes", format="marlin-24"), r"groups.bytes.weights: format: got 'marlin-24', whose zeros are left out"),
    "sparse zeros": (set_all(sparsity_config={"format": "sparse-24-bitmask"}), r"sparsity_config: got format 'sparse-24-bitmask'"),
    "unknown format": (set_group("bytes", format="int-5d"), r"format: got 'int-5d', expected one of pack-quantized, int-quantized"),
    "no format": (both(set_group("bytes", format=None), set_all(format=None)), r"config.json: quantization_config.config_groups.bytes.weights: format: got None"),
    "mixed, but a group has none": (set_group("bytes", format=None), r"format: got 'mixed-precision', expected one of"),
    "unknown bits": (set_weights("packed", num_bits=9), r"num_bits: got 9 of type 'int' for format pack-quantized, expected 1 to 8 of type int"),
    "bits that are no number": (set_weights("packed", num_bits="4"), r"num_bits: got '4' of type 'int'"),
    "unknown type": (set_weights("bytes", type="posit"), r"num_bits: got 8 of type 'posit'"),
    "floats in a format of whole numbers": (set_weights("bytes", type="float"), r"got 8 of type 'float' for format int-quantized, expected 1 to 8 of type int"),
    "floats with zero points": (both(set_group("bytes", format="float-quantized"), set_weights("bytes", type="float", symmetric=False)), r"symmetric: got False, expected true"),
    "group size of a format": (both(set_group("packed", format="nvfp4-pack-quantized"), set_weights("packed", type="float", symmetric=True)), r"group_size: got 32 for format nvfp4-pack-quantized, expected 16"),
    "unknown strategy": (set_weights("bytes", strategy="token"), r"strategy: got 'token', expected one of tensor, channel"),
    "groups without a size": (set_weights("packed", group_size=None), r"group_size: got None with strategy group"),
    "a size without groups": (set_weights("bytes", group_size=32), r"group_size: got 32 with strategy channel"),
    "a size of 0": (set_weights("packed", group_size=0), r"group_size: got 0, expected a positive number"),
    "blocks without a size": (set_weights("bytes", strategy="block"), r"block_structure: got None with strategy block"),
    "odd blocks": (set_weights("bytes", strategy="block", block_structure=[3]), r"block_structure: got \[3\], expected \[rows, columns\]"),
    "dynamic weights": (set_weights("bytes", dynamic=True), r"dynamic: got True, expected false"),
    "unknown setting": (set_weights("bytes", twist=3), r"unknown setting 'twist'"),
    "unknown setting of a group": (set_group("bytes", twist=3), r"config_groups.bytes: got the unknown setting 'twist'"),
    "preset": (lambda s: s.settings["config_groups"].update(W4A16=["Linear"]), r"config_groups.W4A16: got \['Linear'\], expected settings"),
    "no groups": (set_all(config_groups=None), r"config_groups: got None, expected groups"),
    "a pattern that is none": (set_group("bytes", targets=["re:(", "Linear"]), r"targets: got 're:\(', which is no pattern"),
    "unknown order": (set_weights("packed", actorder="random"), r"actorder: got 'random', expected group, weight or null"),
    "groups that do not divide": (set_weights("packed", group_size=48), r"group_size: got 48, expected a divisor of the 64 columns of '[\w.]+weight_packed'"),
    "order without groups of columns": (set_weights("packed", actorder="group"), r"tensor '[\w.]+.weight_g_idx' is missing, but .*actorder group, which needs it"),
    "groups of columns without order": (put(f"{Q}.weight_g_idx", torch.arange(64, dtype=torch.int32).flip(0) // 32), r"weight_g_idx' got columns in another order, but .* does not say so with actorder"),
    "groups of columns out of range": (both(set_weights("packed", actorder="group"), put(f"{Q}.weight_g_idx", torch.full((64,), 2, dtype=torch.int32))), r"weight_g_idx' got groups 2 to 2, expected 0 to 1"),
    "too few groups of columns": (put(f"{Q}.weight_g_idx", torch.zeros(63, dtype=torch.int32)), r"weight_g_idx' got I32 \[63\], expected I32 or I64 \[64\]"),
    "another shape": (put(f"{Q}.weight_shape", torch.tensor([128, 65])), r"weight_shape' got \[128, 65\], but 'weight_packed' is \[128, 8\] with 4 bits"),
    "a shape of three": (put(f"{Q}.weight_shape", torch.tensor([128, 64, 1])), r"weight_shape' got I64 \[3\], expected I64 or I32 \[2\]"),
    "other bits": (set_weights("packed", num_bits=8), r"weight_shape' got \[64, 64\], but 'weight_packed' is \[64, 8\] with 8 bits"),
    "no shape": (drop(f"{Q}.weight_shape"), rf"tensor '{Q}.weight_shape' is missing"),
    "no scale": (drop(f"{Q}.weight_scale"), rf"tensor '{Q}.weight_scale' is missing"),
    "no scale of bytes": (drop(f"{DOWN}.weight_scale"), rf"tensor '{DOWN}.weight_scale' is missing"),
    "no codes": (drop(f"{Q}.weight_packed"), rf"tensor '{Q}.weight_packed' is missing"),
    "no zero points": (drop(f"{Q}.weight_zero_point"), r"weight_zero_point' is missing, but .*packed.weights has symmetric false"),
    "zero points of symmetric codes": (set_weights("packed", symmetric=True), r"weight_zero_point' got zero points other than 0, but .* has symmetric true"),
    "shape of zero points": (put(f"{Q}.weight_zero_point", torch.zeros(15, 2, dtype=torch.int32)), r"weight_zero_point' got I32 \[15, 2\], expected I32 \[16, 2\]"),
    "shape of scales": (put(f"{Q}.weight_scale", torch.ones(128, 3)), r"weight_scale' got F32 \[128, 3\], expected F32 or F16 or BF16 \[128, 2\]"),
    "type of scales": (put(f"{Q}.weight_scale", torch.ones(128, 2, dtype=torch.int32)), r"weight_scale' got I32 \[128, 2\]"),
    "type of codes": (put(f"{Q}.weight_packed", torch.zeros(128, 8, dtype=torch.int64)), r"weight_packed' got I64 \[128, 8\], expected I32 with two axes"),
    "experts in one tensor": (put(f"{Q}.weight_packed", torch.zeros(2, 128, 8, dtype=torch.int32)), r"weight_packed' got I32 \[2, 128, 8\], expected I32 with two axes"),
    "float8 for whole numbers": (put(f"{DOWN}.weight", torch.zeros(64, 96, dtype=torch.float8_e4m3fn)), r"down_proj.weight' got F8_E4M3 \[64, 96\], expected I8"),
    "packed for bytes": (set_group("packed", targets=["nothing"]), r"weight_packed' is not one of int-quantized, which .*groups.bytes.weights names, expected 'weight'"),
    "bytes for packed": (both(set_group("bytes", targets=["nothing"]), set_group("packed", targets=["Linear"])), r"_proj.weight' is not one of pack-quantized, .* expected 'weight_packed'"),
    "no group": (set_group("bytes", targets=["re:.*up_proj"]), r"_proj' is stored as codes, but is none of the targets re:.\*self_attn.\*, re:.\*up_proj"),
    "ignored": (set_all(ignore=["re:.*q_proj"]), rf"ignore: got 're:.\*q_proj', but '{Q}' is stored as codes"),
    "a group of numbers": (set_group("packed", weights=None), r"config_groups.packed: '[\w.]+_proj' is stored as codes, expected numbers"),
    "a dense group": (set_group("packed", format="dense"), r"config_groups.packed: '[\w.]+_proj' is stored as codes, expected numbers"),
    "numbers for codes": (set_group("bytes", targets=["Linear", "model.embed_tokens"]), r"'model.embed_tokens' is to be codes, but has numbers"),
    "not rounded yet": (both(put(f"{DOWN}.weight", torch.zeros(64, 96)), set_all(quantization_status="frozen")), r"down_proj.weight' got F32, expected codes of int-quantized in 'weight': with quantization_status 'frozen', numbers"),
    "rotation at every step": (set_all(transform_config=rotated("input")), r"transform_config.config_groups.R: got a transform at 'input', which is made at every step"),
    "damaged rotations": (set_all(transform_config=[1]), r"transform_config: got \[1\], expected config_groups"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_it_is_opened(case: str, pristine: Stored, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    stored = fresh(pristine)
    change(stored)
    with pytest.raises((ExportError, UnsupportedError), match=message) as raised:
        open_checkpoint(str(stored.write(tmp_path / "m")))
    assert str(raised.value).startswith(str(tmp_path))


def test_what_is_only_found_in_the_numbers(pristine: Stored, tmp_path: Path) -> None:
    stored = fresh(pristine)
    stored.tensors[f"{Q}.weight_scale"] = torch.full((128, 2), torch.nan)
    stored.settings["config_groups"]["bytes"]["weights"]["num_bits"] = 6
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    for name, message in {Q: "weight_scale' holds NaN or infinity", DOWN: "weight' got codes beyond 6 bits"}.items():
        rows = opened.codes(f"{name}.weight")
        assert rows is not None
        for use in (rows.load, lambda name=name: opened.read(f"{name}.weight")):
            with pytest.raises(ExportError, match=message):
                use()


# What is given and has no effect on the weights -> the file, the names, and a part of the reason.
UNUSED: dict[str, tuple[Change, list[tuple[str, str, str]]]] = {
    "nothing": (lambda stored: None, []),
    "codes that are called frozen": (set_all(quantization_status="frozen"), []),
    "rotations in the weights": (set_all(transform_config=rotated("weight_input")), []),
    "no zeros left out": (set_all(sparsity_config={"format": "dense"}), []),
    "activations": (
        both(
            set_group("bytes", input_activations={"num_bits": 8, "dynamic": True}),
            put(f"{DOWN}.input_scale", torch.ones(1)),
            put(f"{DOWN}.input_zero_point", torch.ones(1, dtype=torch.int8)),
        ),
        [
            ("model.safetensors", f"{DOWN}.input_scale, {DOWN}.input_zero_point", "engines choose the type"),
            ("config.json", "quantization_config.config_groups.bytes.input_activations", "engines choose the type"),
        ],
    ),
    "cache": (
        both(set_all(kv_cache_scheme={"num_bits": 8}), put("model.layers.0.self_attn.k_scale", torch.ones(1))),
        [
            ("model.safetensors", "model.layers.0.self_attn.k_scale", "--kv-bits"),
            ("config.json", "quantization_config.kv_cache_scheme", "--kv-bits"),
        ],
    ),
    "a group without modules": (
        lambda s: s.settings["config_groups"].update(idle=group("int-quantized", ["re:nothing"], weights(8, strategy="channel"))),
        [("config.json", "quantization_config.config_groups.idle", "no module that is stored as codes")],
    ),
    "unknown setting": (set_all(future=3), [("config.json", "quantization_config.future", "not known here")]),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSED)
def test_what_is_not_used_is_named(case: str, pristine: Stored, tmp_path: Path) -> None:
    change, expected = UNUSED[case]
    stored = fresh(pristine)
    change(stored)
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    assert [(each.file, ", ".join(each.names)) for each in opened.unused.parts] == [each[:2] for each in expected]
    for each, (_, _, reason) in zip(opened.unused.parts, expected, strict=True):
        assert re.search(reason, each.reason)
    assert not [name for name in opened.tensors if not name.endswith(".weight")]
    assert opened.codes(f"{Q}.weight") is not None


def test_the_groups_of_modules(pristine: Stored, tmp_path: Path) -> None:
    """A name goes before a pattern, and a pattern before a kind of modules."""
    stored = fresh(pristine)
    stored.settings["config_groups"]["one"] = group("pack-quantized", [Q], dict(GROUPS["packed"]["weights"]))
    stored.settings["config_groups"]["one"]["weights"]["group_size"] = 64
    stored.tensors[f"{Q}.weight_scale"] = stored.tensors[f"{Q}.weight_scale"][:, :1]
    stored.tensors[f"{Q}.weight_zero_point"] = stored.tensors[f"{Q}.weight_zero_point"][:, :1]
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    told = {name: opened.tensors[f"{name}.weight"].codes for name in (Q, Q.replace("q_proj", "k_proj"), DOWN)}
    assert list(told.values()) == [
        "int4 with one scale a row with zero points",
        "int4 in groups of 32 with zero points",
        "int8 with one scale a row",
    ]
