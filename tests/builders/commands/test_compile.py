"""Tests of `enginewright compile`, which adds a backend to an engine directory, and of `build` when only another machine can."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from enginewright import builders
from enginewright.builders.tensorrt import build
from enginewright.runtime import cli
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.artifact.reservation import reserved
from enginewright.runtime.errors import ArtifactError, TargetError
from tests.support.exporters.families import save_checkpoint
from tests.support.paths import ROOT


@pytest.fixture
def root(exported: Path, tmp_path: Path) -> Path:
    """A copy of an engine directory that no backend has built."""
    return Path(shutil.copytree(exported, tmp_path / "engine"))


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.native
@pytest.mark.slow
def test_without_torch(root: Path, tmp_path: Path) -> None:
    """A process in which torch and transformers cannot be imported builds all the same."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/enginewright").symlink_to(ROOT)
    paths = [str(tmp_path / "path"), *filter(None, [os.environ.get("PYTHONPATH")])]
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from enginewright.runtime import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "compile", str(root), "--backend", "onnxruntime"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{root / 'engines/decoder.onnxruntime.onnx'}: " in done.stdout
    (engine,) = directory.load(root).graphs["decoder"].engines
    assert engine.backend == "onnxruntime"


def test_a_build_of_the_same_output_is_refused_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or else the new engine would get the manifest of the old one."""
    before, refused = snapshot(root), list[str]()

    def build_meanwhile(*_: object) -> Manifest:
        with pytest.raises(ArtifactError) as caught, directory.staged(root, overwrite=True):
            raise AssertionError("it has begun")
        refused.append(str(caught.value))
        return directory.load(root)

    monkeypatch.setattr(builders, "build", build_meanwhile)
    words = ["compile", str(root), "--backend", "onnxruntime"]
    assert cli.main(words) == 0 and "got another build that writes it now" in refused[0]
    with reserved(root.resolve()):
        assert cli.main(words) == 2
    assert "got another build that writes it now" in capsys.readouterr().err
    assert len(refused) == 1 and snapshot(root) == before
    assert [path.name for path in root.parent.iterdir()] == [root.name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "tensorflow"], "unknown backend 'tensorflow'; known: onnxruntime, onnxruntime-cuda, tensorrt"),
        (["--backend", "onnxruntime", "--refit"], "--refit: got it with --backend onnxruntime, which does not take it"),
        (["--backend", "tensorrt", "--compute", "sm_89"], "it builds for the GPU of the machine that it runs on"),
        (["--backend", "tensorrt-rtx", "--compute", "sm_99"], "--compute: unknown name 'sm_99'; known: sm_75"),
        (["--backend", "onnxruntime-cuda"], "got a graph that computes in float32, expected float16 or bfloat16"),
        (["--backend", "tensorrt-rtx"], "expected standard ops alone"),
    ],
)
def test_refusals(words: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(root)
    assert cli.main(["compile", str(root), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("enginewright compile: error: ") and message in error
    assert snapshot(root) == before


def test_what_is_no_engine(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", str(tmp_path), "--backend", "onnxruntime"]) == 2
    assert "got no manifest.json" in capsys.readouterr().err
    data = root / "graphs/decoder.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x7f")
    assert cli.main(["compile", str(root), "--backend", "onnxruntime"]) == 2
    assert "content differs from manifest.json" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_build_where_tensorrt_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The directory is complete, and the message names a valid command for the machine that has TensorRT."""
    save_checkpoint("qwen3", tmp_path / "model")
    output = tmp_path / "engine"
    words = ["--model", str(tmp_path / "model"), "--output", str(output), "--dtype", "float16", "--max-batch", "2"]
    options = ["--prefill-chunk", "128", "--optimization-level", "4"]
    assert cli.main(["build", *words, "--backend", "tensorrt", *options]) == 0
    error = capsys.readouterr().err
    assert "got no Python package tensorrt" in error and "pip install 'enginewright[tensorrt]'" in error
    assert f"enginewright compile DIR --backend tensorrt {' '.join(options)}" in error
    manifest = directory.load(output)
    assert manifest.graphs["decoder"].engines == () and manifest.limits.max_batch == 2
    assert cli.main(["compile", str(output), "--backend", "tensorrt", *options]) == 2
    assert "got no Python package tensorrt" in capsys.readouterr().err


@pytest.mark.slow
def test_build_refuses_before_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors that another machine would not avoid are raised, and options are checked before anything is read."""
    save_checkpoint("qwen2", tmp_path / "model")
    words = ["build", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "engine"), "--backend", "tensorrt"]
    assert cli.main([*words, "--dtype", "float16"]) == 2
    assert "got heads of 16 and 16" in capsys.readouterr().err
    words[2] = str(tmp_path / "no model")
    for wrong, message in {
        "--backend tensorrt": "got a graph that computes in float32, expected float16 or bfloat16",
        "--backend onnxruntime-cuda": "got a graph that computes in float32",
        "--backend onnxruntime --dtype float16": "computes in half precision, expected float32",
        "--backend onnxruntime --dtype bfloat16 --plugins none": "bfloat16, which ONNX Runtime does not run on a CPU",
        "--backend onnxruntime-cuda --dtype float16 --plugins none": "build without --plugins none",
        "--backend tensorrt-rtx --dtype float16": "takes no plugins; build with --plugins none",
    }.items():
        assert cli.main([*words, *wrong.split()]) == 2
        assert message in capsys.readouterr().err
    assert cli.main([*words, "--optimization-level", "9"]) == 2
    assert "--optimization-level: got 9" in capsys.readouterr().err
    assert cli.main([*words, "--compute", "sm_86"]) == 2
    assert "--compute: got it with --backend tensorrt" in capsys.readouterr().err
    assert not (tmp_path / "engine").exists()


def test_target_errors_are_for_build_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise TargetError("no GPU")

    monkeypatch.setattr(build, "build", refuse)
    with pytest.raises(TargetError, match="no GPU"):
        builders.build(root, dataclasses.replace(directory.load(root), weights={"kind": "float16"}), "tensorrt")
