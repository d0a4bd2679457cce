"""Tests with TensorRT-RTX's real parser and builder, ahead of time for GPUs that this machine lacks, in separate processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from enginewright.exporters.recipe import Recipe, parse_weights
from enginewright.runtime.artifact import directory
from tests.support.exporters.families import FAMILIES
from tests.support.exporters.fixtures import checkpoint_once, exported_once
from tests.support.paths import ROOT, SUPPORT

pytestmark = [pytest.mark.rtx, pytest.mark.slow]

PLAN = "engines/decoder.tensorrt-rtx.plan"
ROWS, CONTEXT = 3, 96
PROBE = SUPPORT / "builders/rtx_probe.py"
WIDE = {"hidden_size": 512, "intermediate_size": 3072}
Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which a process finds the package, installed or not."""
    package = tmp_path_factory.mktemp("path")
    (package / "enginewright").symlink_to(ROOT)
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Make an engine directory of standard ops that no backend has built; the same is exported once."""
    made: dict[Any, Path] = {}

    def make(family: str, dtype: str = "float16", weights: str = "float32", **sizes: Any) -> Path:
        key = (family, dtype, weights, *sizes)
        if key not in made:
            recipe = Recipe(
                dtype=dtype, weights=parse_weights(weights), plugins="none", max_batch=ROWS, max_context=CONTEXT
            )
            made[key] = exported_once(tmp_path_factory, checkpoint_once(tmp_path_factory, family, **sizes), recipe)
        return made[key]

    return make


def run(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command `enginewright` with these words."""
    command = [sys.executable, "-m", "enginewright.runtime.cli", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def compiled(environment: dict[str, str], tmp_path: Path) -> Maker:
    """Build a copy of an exported directory with these options, and return it."""

    def make(source: Path, *options: str, name: str = "engine") -> Path:
        root = Path(shutil.copytree(source, tmp_path / name))
        done = run(environment, "compile", root, "--backend", "tensorrt-rtx", *options)
        assert done.returncode == 0, done.stderr
        assert f"{root / PLAN}: " in done.stdout
        return root

    return make


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_ahead_of_time_for_three_gpus(family: str, exported: Maker, compiled: Maker) -> None:
    import tensorrt_rtx

    source = exported(family)
    root = compiled(source, "--compute", "sm_86,sm_89,sm_120")
    manifest = directory.load(root)  # with every file's sum
    (engine,) = manifest.graphs["decoder"].engines
    assert (engine.backend, engine.version) == ("tensorrt-rtx", tensorrt_rtx.__version__)
    assert engine.compute == "sm_86+sm_89+sm_120" and engine.plugins == {}
    assert [file.path for file in engine.files] == [PLAN] and engine.files[0].size > 500_000
    new = {p.relative_to(root) for p in root.rglob("*")} - {p.relative_to(source) for p in source.rglob("*")}
    assert new == {Path("engines"), Path(PLAN)}, "nothing else is left"
    one = compiled(source, "--compute", "sm_89", name="one")
    assert (one / PLAN).stat().st_size < (root / PLAN).stat().st_size, "each GPU has code of its own"


@pytest.mark.parametrize(("family", "dtype"), [("qwen3", "bfloat16"), ("qwen2", "float32"), ("mistral", "float16")])
def test_other_types_and_sliding_windows(family: str, dtype: str, exported: Maker, compiled: Maker) -> None:
    root = compiled(exported(family, dtype), "--prefill-chunk", "32", "--weight-streaming")
    (engine,) = directory.load(root).graphs["decoder"].engines
    assert engine.compute == "sm_80+"


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_stay_in_their_bits(bits: int, exported: Maker, compiled: Maker) -> None:
    """A plan of 11 M weights is larger than its kernels by the weights' bits, except for a table of 250 embeddings."""
    half = compiled(exported("qwen3", **WIDE), "--compute", "sm_86", name="half")
    source = exported("qwen3", weights=f"int{bits}", **WIDE)
    blocks = compiled(source, "--compute", "sm_86", name="blocks")
    saved = (half / PLAN).stat().st_size - (blocks / PLAN).stat().st_size
    files = [root / "graphs/decoder.onnx.data" for root in (half, blocks)]
    expected = files[0].stat().st_size - files[1].stat().st_size
    assert expected > 8e6 and saved > 0.7 * expected  # their kernels are larger, by 2 MB


@pytest.fixture(scope="module")
def probes(exported: Maker, environment: dict[str, str]) -> dict[str, Any]:
    """The parser's results for each family, and for int4 weights that do not fill their blocks."""
    roots = {str(exported(family)): family for family in FAMILIES}
    roots[str(exported("llama", weights="int4"))] = "llama, int4"
    roots[str(exported("mixtral", weights="int8"))] = "mixtral, int8"
    done = subprocess.run([sys.executable, PROBE, *roots], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {roots[probe["root"]]: probe for probe in found}


@pytest.mark.parametrize("family", [*FAMILIES, "llama, int4", "mixtral, int8"])
def test_every_family_is_parsed(family: str, probes: dict[str, Any], exported: Maker) -> None:
    probe = probes[family]
    name, _, weights = family.partition(", ")
    manifest = directory.load(exported(name, weights=weights or "float32"))
    graph, layers = manifest.graphs["decoder"], len(manifest.cache.layers)
    assert probe["domains"] == [""] and len(set(probe["stream"])) == layers + 1
    assert probe["inputs"] == {
        spec.name: [size if isinstance(size, int) else -1 for size in spec.shape] for spec in graph.inputs
    }
    assert probe["outputs"] == [spec.name for spec in graph.outputs]
    found = Counter(probe["layers"])
    assert found["KV_CACHE_UPDATE"] == 2 * layers
    fused = family not in ("gemma2", "gpt_oss")  # a softcap and sinks are written as products
    assert found["ATTENTION_INPUT"] == layers * fused
    products = manifest.weights["kind"] in ("int4", "int8")
    assert (found["DEQUANTIZE"] > 4 * layers) if products else not found["DEQUANTIZE"]
    assert found["PLUGIN_V3"] == found["PLUGIN_V2"] == 0


def test_profiles_as_tensorrt_has_them(probes: dict[str, Any]) -> None:
    decode, prefill = probes["qwen3"]["profiles"]["decode"], probes["qwen3"]["profiles"]["prefill"]
    cache = [2, CONTEXT, 32]
    assert decode == {
        "input_ids": [[1, 1], [ROWS, 1], [ROWS, 1]],
        "position_ids": [[1, 1], [ROWS, 1], [ROWS, 1]],
        "sample_rows": [[1], [ROWS], [ROWS]],
        "past_lens": [[1], [ROWS], [ROWS]],
        **{f"kv.{i}.{side}": [[1, *cache], *[[ROWS, *cache]] * 2] for i in range(2) for side in ("key", "value")},
    }
    assert prefill == {
        "input_ids": [[1, 1], [1, 48], [1, 48]],
        "position_ids": [[1, 1], [1, 48], [1, 48]],
        "sample_rows": [[1], [1], [48]],
        "past_lens": [[1]] * 3,
        **{f"kv.{i}.{side}": [[1, *cache]] * 3 for i in range(2) for side in ("key", "value")},
    }


def test_what_the_parser_refuses(exported: Maker, environment: dict[str, str], tmp_path: Path) -> None:
    root = Path(shutil.copytree(exported("qwen3"), tmp_path / "engine"))
    path = root / "graphs/decoder.onnx"
    model = ir.load(path)
    node = next(node for node in model.graph if node.op_type == "Sigmoid")
    node.op_type, node.name = "Unique", "odd_one"
    ir.save(model, path)
    _describe_again(root)
    before = (root / "manifest.json").read_bytes()
    done = run(environment, "compile", root, "--backend", "tensorrt-rtx")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "decoder: tensorrt-rtx 1." in done.stderr and " does not take the graph (" in done.stderr
    assert "Unique" in done.stderr
    assert (root / "manifest.json").read_bytes() == before
    assert not [p for p in root.rglob("*") if "tensorrt" in p.name]


def _describe_again(root: Path) -> None:
    """Let the manifest name the graph as it is now."""
    raw = json.loads((root / "manifest.json").read_text())
    file = directory.describe_file(root, root / "graphs/decoder.onnx")
    raw["graphs"]["decoder"]["files"][0] |= {"size": file.size, "sha256": file.sha256}
    (root / "manifest.json").write_text(json.dumps(raw))


def test_from_a_checkpoint_in_one_command(
    environment: dict[str, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = checkpoint_once(tmp_path_factory, "qwen3")
    build = ["build", "--model", checkpoint, "--output", tmp_path / "engine", "--plugins", "none", "--dtype", "float16"]
    done = run(environment, *build, "--backend", "tensorrt-rtx", "--compute", "sm_86,sm_90")
    assert done.returncode == 2 and "--compute: got sm_90, expected one of sm_75" in done.stderr
    assert not (tmp_path / "engine").exists()
    sizes = ["--max-batch", "2", "--max-context", "64"]
    done = run(
        environment, *build, *sizes, "--backend", "tensorrt-rtx", "--compute", "sm_86", "--optimization-level", "1"
    )
    assert done.returncode == 0, done.stderr
    (engine,) = directory.load(tmp_path / "engine").graphs["decoder"].engines
    assert engine.compute == "sm_86"
