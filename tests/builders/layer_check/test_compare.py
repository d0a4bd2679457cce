"""Tests of `enginewright check --layers`: it finds the residual stream and reports the layer where a difference begins."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from enginewright.builders.layer_check import compare
from enginewright.builders.layer_check.compare import LayerError, LayerReport, compare_layers
from enginewright.builders.layer_check.residual_stream import find_residual_stream
from enginewright.builders.tensorrt.graph_file import RowsTensor
from enginewright.exporters.export import export
from enginewright.exporters.recipe import Recipe, parse_weights
from enginewright.runtime import cli
from enginewright.runtime.artifact import directory
from enginewright.runtime.errors import BuildError, UnsupportedError
from tests.support.exporters.families import save_checkpoint
from tests.support.paths import ROOT

HEADER = '<ir_version: 10, opset_import: ["" : 24]>\n'


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory of standard ops, half precision and int4."""
    root = tmp_path_factory.mktemp("dense")
    save_checkpoint("qwen3", root / "checkpoint", num_hidden_layers=3)
    (root / "engine").mkdir()
    recipe = Recipe(dtype="float16", weights=parse_weights("int4"), plugins="none", max_batch=2, max_context=40)
    export(str(root / "checkpoint"), root / "engine", recipe)
    return root / "engine"


@pytest.fixture
def root(dense: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dense, tmp_path / "engine"))


def stream_of(body: str, layers: int) -> list[str]:
    text = f"g (int64[T] input_ids, float[9, 4] table) => (float[T, 4] y) {{ {body} }}"
    model = ir.from_proto(onnx.parser.parse_model(HEADER + text))
    return [str(value.name) for value in find_residual_stream(model.graph, layers)]


class TestStream:
    def test_two_sums_a_layer(self) -> None:
        body = "x = Gather (table, input_ids)  a = Relu (x)  b = Add (x, a)  c = Relu (b)  d = Add (c, b)  y = Relu (d)"
        assert stream_of(body, 1) == ["x", "d"]

    def test_scaled_embeddings(self) -> None:
        body = """x = Gather (table, input_ids)  s = Neg (x)  a = Relu (s)  b = Add (s, a)  c = Relu (b)  d = Add (b, c)
            y = Relu (d)"""
        assert stream_of(body, 1) == ["s", "d"]

    def test_other_graphs_are_refused(self) -> None:
        with pytest.raises(BuildError, match="got no lookup of input_ids"):
            stream_of("ids = ArgMax <axis = 1, keepdims = 0> (table)  x = Gather (table, ids)  y = Relu (x)", 1)
        with pytest.raises(BuildError, match="got a residual stream of 1 sums, expected 2 in each of 1 layers"):
            stream_of("x = Gather (table, input_ids)  a = Relu (x)  b = Add (x, a)  y = Relu (b)", 1)


@pytest.mark.slow
def test_equal_but_for_rounding(root: Path) -> None:
    before = {path.name for path in (root / "graphs").iterdir()}
    report = compare_layers(root, directory.load(root))
    assert "under ONNX Runtime" in report.compared
    assert [each.layer for each in report.layers] == [-1, 0, 1, 2]
    assert report.layers[0].max_error == 0, "the table holds what the codes stand for"
    assert all(0 < each.relative < 2e-3 for each in report.layers[1:])
    assert report.first_beyond(0.02) is None
    assert {path.name for path in (root / "graphs").iterdir()} == before


@pytest.mark.slow
def test_a_difference_is_seen_where_it_begins(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: ir.Model) -> None:
        """Scales of one layer's weights half as large as they should be."""
        plain(model)
        name = next(
            name for name in model.graph.initializers if "layers.1.mlp.down" in name and name.endswith("blocks")
        )
        tensor = model.graph.initializers[name].const_value
        assert isinstance(tensor, RowsTensor)
        rows = tensor.rows
        tensor.rows = lambda a, b: rows(a, b) / np.float16(2)

    plain = compare.rewrite
    monkeypatch.setattr(compare, "rewrite", wrong)
    report = compare_layers(root, directory.load(root))
    first = report.first_beyond(0.02)
    assert first is not None and first.layer == 1
    assert "layer 1" in report.table(0.02) and "<- first" in report.table(0.02).splitlines()[4]


def test_what_is_not_a_number_is_beyond() -> None:
    layers = tuple(LayerError(layer=i, max_error=x, relative=x) for i, x in enumerate((0.0, math.nan, 1.0)))
    first = LayerReport(compared="", layers=layers).first_beyond(2.0)
    assert first is not None and first.layer == 1


@pytest.mark.slow
class TestCommand:
    def test_report_and_exit_code(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["check", str(root), "--layers"]) == 0
        out = capsys.readouterr().out
        assert "embeddings" in out and "layer 2" in out and "all within 2e-02" in out
        assert cli.main(["check", str(root), "--layers", "--layer-tolerance", "1e-6", "--json"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert report["first"] == 0 and len(report["layers"]) == 4
        assert json.loads((root / "reports/layers.json").read_text()) == report

    def test_refusals(self, root: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["check", str(exported), "--layers"]) == 2
        assert "got a paged cache, expected a graph of standard ops" in capsys.readouterr().err
        assert cli.main(["check", str(root)]) == 2
        assert "got neither --model nor --layers" in capsys.readouterr().err
        raw = (root / "manifest.json").read_text()
        (root / "manifest.json").write_text(raw.replace('"dtype": "float16"', '"dtype": "bfloat16"'))
        assert cli.main(["check", str(root), "--layers"]) == 2
        assert "got bfloat16, expected float16 or float32" in capsys.readouterr().err

    def test_without_polygraphy(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UnsupportedError, match="got no Python package polygraphy"):
            compare_layers(root, directory.load(root))

    def test_without_torch(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "path").mkdir()
        (tmp_path / "path/enginewright").symlink_to(ROOT)
        paths = [str(tmp_path / "path"), *filter(None, [os.environ.get("PYTHONPATH")])]
        code = (
            "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
            "from enginewright.runtime import cli; sys.exit(cli.main(sys.argv[1:]))"
        )
        words = [sys.executable, "-c", code, "check", str(root), "--layers"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stderr == "", done.stderr
