"""Tests of the files of gates: what is read, which heads keep all tokens, and what is refused by name, shape and model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from enginewright.exporters.export import export
from enginewright.exporters.methods.evict import Config
from enginewright.exporters.methods.evict.head_gates import HeadGates, check_head_gates, open_head_gates
from enginewright.exporters.methods.evict.token_gates import PARTS, open_token_gates
from enginewright.exporters.methods.measured_file import SourceModel
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.errors import ExportError
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.exporters.gate_files import INNER, changed_json, gate_tensors, write_head_gates

SHA = "0123456789abcdef" * 4
GATES = HeadGates(
    model=SourceModel(name="small", sha256=SHA),
    gates=((0.5, 0.25), None, (0.25, 1.0), (0.0, 0.75)),
    repeats=500,
    data="reasoning",
    texts=1,
    tokens=200,
)
SMALL = "evict:budget=40,interval=16"
Tensors = dict[str, np.ndarray]


class TestHeads:
    def test_a_file_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        GATES.write(tmp_path / "heads.json")
        assert open_head_gates(tmp_path / "heads.json") == GATES

    @pytest.mark.parametrize(
        ("sparsity", "whole"),
        [
            (0.0, ((0, 1), (0, 1), (0, 1))),
            (0.5, ((0,), (1,), (1,))),  # 0.0, and the two of 0.25
            (0.34, ((0,), (0, 1), (1,))),  # two of six: of equal gates the first one
            (0.99, ((), (1,), ())),
            (1.0, ((), (), ())),
        ],
    )
    def test_heads_with_small_gates_let_tokens_go(self, sparsity: float, whole: tuple[tuple[int, ...], ...]) -> None:
        assert GATES.whole_heads(sparsity) == whole

    def test_the_authors_table_has_no_model(self, tmp_path: Path) -> None:
        path = tmp_path / "full_attention_heads.tsv"
        path.write_text("1.000000000000000000e+00\t0.0\n0.5\t2.5e-01\n\n")
        found = open_head_gates(path)
        assert (found.model, found.gates) == (None, ((1.0, 0.0), (0.5, 0.25)))
        check_head_gates(path, found, sha256=SHA, layers=2)
        with pytest.raises(
            ExportError, match=r"got the gates of an unnamed model, 2 layers, no sha256, expected .* 3 lay"
        ):
            check_head_gates(path, found, sha256=SHA, layers=3)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1\t0\n1\n", "got lines of different lengths"),
            ("1\tmuch\n", "got a word that is no number"),
            ("1\t1.5\n", "gates: got 1.5, expected numbers from 0 to 1"),
            ("1\tnan\n", "gates: got nan"),
            ("\n", "gates: got .*, expected one for each KV head"),
        ],
    )
    def test_a_table_without_gates_is_refused(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "heads.tsv").write_text(text)
        with pytest.raises(ExportError, match=f"{message}.*make the gates by `enginewright tune duo`"):
            open_head_gates(tmp_path / "heads.tsv")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"gates": [[0.5, -0.1]]}, "gates: got -0.1"),
            ({"gates": [None, None]}, "gates: got"),
            ({"gates": [[]]}, "gates: got"),
            ({"gates": [["all"]]}, "got 'all'"),
            ({"model": None}, "model: got none"),
            ({"extra": 1}, "unknown key 'extra'"),
        ],
    )
    def test_a_file_without_gates_is_refused(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        GATES.write(tmp_path / "heads.json")
        with pytest.raises(ExportError, match=rf"{message}.*make the gates by"):
            open_head_gates(changed_json(tmp_path / "heads.json", **change))

    def test_missing_files(self, tmp_path: Path) -> None:
        for name in ("heads.json", "heads.tsv"):
            with pytest.raises(ExportError, match=name):
                open_head_gates(tmp_path / name)

    def test_gates_of_another_model_are_refused_before_anything_is_written(
        self, checkpoint: CheckpointMaker, tmp_path: Path
    ) -> None:
        model, path = checkpoint("qwen3", gain=3.0), tmp_path / "heads.json"
        HeadGates(model=SourceModel(name="other", sha256=SHA), gates=((1.0, 0.0), (1.0, 0.0))).write(path)
        own = hash_of(open_checkpoint(str(model)))[:12]
        with pytest.raises(
            ExportError, match=f"got the gates of 'other', 2 layers, sha256 {SHA[:12]}, expected .*, sha256 {own}"
        ):
            export(str(model), tmp_path / "engine", heads_recipe(path))
        write_head_gates(model, path, ((1.0, 0.0, 0.5), (1.0, 0.0, 0.5)))
        with pytest.raises(
            ExportError, match=r"got gates of \[3, 3\] KV heads in 2 layers, expected \[2, 2\] in the 2"
        ):
            export(str(model), tmp_path / "engine", heads_recipe(path))
        assert not (tmp_path / "engine").exists() or not any((tmp_path / "engine").iterdir())

    def test_a_table_counts_layers_with_windows(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        (tmp_path / "heads.tsv").write_text("1\t0\n1\t0\n")
        with pytest.raises(
            ExportError, match=r"got gates of \[2, 2\] KV heads in 2 layers, expected \[2\] in the 1 with"
        ):
            export(str(checkpoint("gemma3_text", gain=3.0)), tmp_path / "engine", heads_recipe(tmp_path / "heads.tsv"))


def heads_recipe(path: Path) -> Recipe:
    return Recipe(
        apply=(parse_method(f"{SMALL},sinks=4,allocation=duo,head_gates={path}"),), kv_bits=32, max_context=64
    )


def _drop(*parts: str) -> Callable[[Tensors], None]:
    def drop(tensors: Tensors) -> None:
        for part in parts:
            del tensors[f"model.layers.1.self_attn.retention_gate.{part}"]

    return drop


def _put(part: str, value: Any) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({f"model.layers.1.self_attn.retention_gate.{part}": np.float32(value)})


class TestTokens:
    @pytest.fixture
    def tensors(self, checkpoint: CheckpointMaker) -> Tensors:
        return gate_tensors(open_checkpoint(str(checkpoint("qwen3", gain=3.0))).config)

    def test_gates_of_a_file_or_of_a_folder_of_files(self, tensors: Tensors, tmp_path: Path) -> None:
        halves = [{name: x for name, x in tensors.items() if f"layers.{layer}." in name} for layer in range(2)]
        for layer, half in enumerate(halves):
            save_file({**half, "model.norm.weight": np.ones(3, np.float32)}, tmp_path / f"{layer}.safetensors")
        found = open_token_gates(tmp_path)
        assert {layer: set(own) for layer, own in found.items()} == {layer: set(PARTS) for layer in range(2)}
        one = found[1]["linear2.weight"]
        np.testing.assert_array_equal(one.load(), tensors[one.name])
        assert list(open_token_gates(tmp_path / "1.safetensors")) == [1]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (_drop("bias"), r"got no layers\.1\.self_attn\.retention_gate\.bias, expected it with the others"),
            (_drop("linear1.weight"), r"got no layers\.1\.self_attn\.retention_gate\.linear1\.weight"),
            (
                _drop(*PARTS),
                r"got no layers\.1\.self_attn\.retention_gate\.\*, expected the gate of each layer",
            ),
            (_put("bias", np.ones(3)), rf"linear2\.weight: got shape \[2, {INNER}\], expected \[3, {INNER}\]"),
            (_put("linear1.bias", np.ones(5)), rf"linear1\.bias: got shape \[5\], expected \[{INNER}\]"),
            (
                _put("linear1.weight", np.ones((INNER, 7))),
                rf"linear1\.weight: got shape \[{INNER}, 7\], expected \[any, 64\], the model's hidden size",
            ),
            (_put("linear1.weight", np.ones(INNER)), rf"got shape \[{INNER}\], expected"),
            (_put("linear2.weight", np.full((2, INNER), np.nan)), r"linear2\.weight: got NaN or infinity"),
            (_put("gate_proj.weight", np.ones((2, 2))), r"gate_proj\.weight', expected gates of linear1\.weight"),
            (
                lambda tensors: tensors.update(
                    {name.replace("layers.1", "layers.2"): x for name, x in tensors.items() if "layers.1" in name}
                ),
                "got gates of layer 2, expected layers 0 to 1",
            ),
            (
                lambda tensors: tensors.update(
                    {
                        "model.layers.1.self_attn.retention_gate.linear2.weight": np.ones((3, INNER), np.float32),
                        "model.layers.1.self_attn.retention_gate.bias": np.ones(3, np.float32),
                    }
                ),
                r"layers\.1\.self_attn\.retention_gate\.bias: got shape \[3\], expected \[2\], the layer's KV heads",
            ),
        ],
    )
    def test_missing_or_misshapen_gates_are_refused_by_name_and_shape(
        self,
        change: Callable[[Tensors], None],
        message: str,
        tensors: Tensors,
        checkpoint: CheckpointMaker,
        tmp_path: Path,
    ) -> None:
        change(tensors)
        save_file(tensors, tmp_path / "gates.safetensors")
        method = parse_method(f"{SMALL},score=trim,gates={tmp_path / 'gates.safetensors'}")
        with pytest.raises(ExportError, match=message):
            export(
                str(checkpoint("qwen3", gain=3.0)),
                tmp_path / "engine",
                Recipe(apply=(method,), kv_bits=32, max_context=64),
            )
        assert not (tmp_path / "engine").exists() or not any((tmp_path / "engine").iterdir())

    def test_a_model_of_another_activation(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        model = checkpoint("gemma2")
        save_file(gate_tensors(open_checkpoint(str(model)).config), tmp_path / "gates.safetensors")
        method = parse_method(f"{SMALL},score=trim,gates={tmp_path / 'gates.safetensors'}")
        with pytest.raises(ExportError, match=r"got a model of activation gelu_pytorch_tanh, .* expected silu"):
            export(str(model), tmp_path / "engine", Recipe(apply=(method,), kv_bits=32, max_context=64))

    def test_files_without_gates(self, tmp_path: Path) -> None:
        save_file({"model.norm.weight": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
        (tmp_path / "trimkv_weights.pth").write_bytes(b"pickle")
        for path in (tmp_path, tmp_path / "model.safetensors"):
            with pytest.raises(
                ExportError, match=r"got no tensor layers.*convert them from the authors' trimkv_weights"
            ):
                open_token_gates(path)
        with pytest.raises(ExportError, match=r"trimkv_weights\.pth: cannot be read"):
            open_token_gates(tmp_path / "trimkv_weights.pth")
        with pytest.raises(ExportError, match=r"missing\.safetensors: cannot be read"):
            open_token_gates(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "trim"}, "gates: got none with score trim, expected the file of TRIM-KV's trained gates"),
        ({"gates": "g"}, "gates: got g, expected none without score=trim"),
        (
            {"allocation": "duo"},
            "head_gates: got none with allocation=duo, expected the file that `enginewright tune duo`",
        ),
        ({"head_gates": "h"}, "head_gates: got h, expected none without allocation=duo"),
        ({"allocation": "duo", "head_gates": "h", "sparsity": 1.5}, "sparsity: got 1.5, expected 0 to 1"),
        ({"allocation": "duo", "head_gates": "h", "budget": 64}, "budget: got 64, expected 73 or more"),
        ({"allocation": "reasonalloc"}, "curve: got none .*, expected the file .* makes, or layers=false"),
        ({"curve": "c"}, "curve: got c, expected none without allocation=reasonalloc and layers=true"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_defaults_follow_the_allocation() -> None:
    duo, plain = Config(allocation="duo", head_gates="h").policy(whole=((0,),)), Config().policy()
    assert (duo.score, duo.budget, duo.sinks) == ("streaming", 320, 64)
    assert (plain.score, plain.budget, plain.sinks) == ("rkv", 512, 0)
    mixed = Config(allocation="duo", head_gates="h", score="rkv").policy(whole=((0,),))
    assert (mixed.score, mixed.sinks) == ("rkv", 0)
    assert not re.search("head_gates|sparsity", str(duo)), "the manifest has the heads that follow from them"
