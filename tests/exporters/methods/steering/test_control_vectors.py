"""llama.cpp's control vectors: what is read of a file, where it goes, and what is refused; folders of vectors that are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.steering.control_vectors import read_control_vectors, read_directions
from enginewright.exporters.methods.steering.method import NAME, Config, conditions
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime import cli
from enginewright.runtime.artifact.manifest import Condition
from enginewright.runtime.artifact.safetensors_file import read_floats
from enginewright.runtime.artifact.vector_files import read_vectors
from enginewright.runtime.errors import ArtifactError, ExportError
from tests.support.paths import EXAMPLES

MODEL = EXAMPLES / "tiny-text"
SIZE, LAYERS = 256, 4


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A file as llama.cpp's generator writes it."""
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "qwen3")
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def directions() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"direction.{layer}": rng.standard_normal(SIZE).astype(np.float32) for layer in (1, 3)}


def declared(**options: object) -> Condition:
    return conditions(Config(**options), open_checkpoint(str(MODEL)))[NAME]  # type: ignore[arg-type]


def test_directions_go_to_the_layers_of_their_numbers(tmp_path: Path) -> None:
    """As in llama.cpp: direction.N is added after block N, counted from 0."""
    path = write(tmp_path / "happy.gguf", directions())
    name, values = read_control_vectors(path, declared(at="stream"))
    assert name == "happy" and values.shape == (LAYERS, SIZE)
    np.testing.assert_array_equal(values[[1, 3]], list(directions().values()))
    assert not values[[0, 2]].any()


def test_a_folder_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = write(tmp_path / "happy.gguf", directions()), tmp_path / "happy"
    command = ["tune", "control-vector", "--file", str(path), "--output", str(output)]
    assert cli.main([*command, "--model", str(MODEL)]) == 0
    name, values = read_vectors(output, declared(at="stream"))
    assert name == "happy"
    np.testing.assert_array_equal(values, read_control_vectors(path, declared(at="stream"))[1])
    assert json.loads((output / "task.json").read_text())["model"]["sha256"] == hash_of(open_checkpoint(str(MODEL)))
    assert cli.main(command) == 2 and "got a folder that has vectors.safetensors" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match=r"got the tensors direction\.1, direction\.3, expected dfv\.<layer>"):
        read_vectors(output, declared(at="heads"))
    with pytest.raises(ArtifactError, match="got a vector for layer 3, expected layers among 0 to 2"):
        read_vectors(output, declared(at="stream", layers="0-2"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "got no tensor, expected direction.1"),
        ({"direction.0": np.zeros(3, np.float32)}, "got the tensor 'direction.0', expected direction.1"),
        ({"blk.0.attn_q.weight": np.zeros(3, np.float32)}, "pass a file of control vectors"),
        (
            {"direction.1": np.zeros((2, 3), np.float32)},
            r"direction\.1: got F32 of shape \[2, 3\], expected F32 with one axis",
        ),
        ({"direction.1": np.zeros(4, np.float16)}, r"direction\.1: got F16"),
        ({"direction.1": np.full(3, np.nan, np.float32)}, "not finite"),
        (
            {"direction.1": np.zeros(3, np.float32), "direction.2": np.zeros(4, np.float32)},
            "got vectors of 3 and 4 numbers",
        ),
    ],
)
def test_files_that_are_none(tensors: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        read_directions(write(tmp_path / "file.gguf", tensors))


def test_files_of_other_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = write(tmp_path / "small.gguf", {"direction.1": np.zeros(3, np.float32)})
    deep = write(tmp_path / "deep.gguf", {"direction.4": np.zeros(SIZE, np.float32)})
    for path, message in ((small, "got vectors of 3 numbers"), (deep, "got a vector for layer 4")):
        with pytest.raises(ExportError, match=message):
            read_control_vectors(path, declared(at="stream"))
        assert cli.main(["tune", "control-vector", "--file", str(path), "--output", "x", "--model", str(MODEL)]) == 2
        assert "expected 256 numbers and layers below 4 as tiny-text has" in capsys.readouterr().err
    with pytest.raises(ExportError, match="which are for the residual stream, with at=heads; build with at=stream"):
        read_control_vectors(deep, declared(at="heads"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"\xff" * 40, "not a whole safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "no safetensors file of floats"),
        ((9).to_bytes(8, "little") + b'{"a": 1} ', "no safetensors file of floats"),
    ],
)
def test_damaged_tensors(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_floats(path, 64)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"dtype": "I16", "shape": [2], "data_offsets": [0, 4]}, "got I16 at 0 to 4"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}, "got F32 at 0 to 16 of 8 bytes"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, r"got 8 bytes for F32 \[3\]"),
        ({"dtype": "F32", "shape": [2]}, "data_offsets"),
    ],
)
def test_damaged_headers(spec: dict[str, object], message: str, tmp_path: Path) -> None:
    header = json.dumps({"dfv.0": spec}).encode()
    path = tmp_path / "vectors.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ArtifactError, match=message):
        read_floats(path, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "format: got no such value"),
        ('{"format": 1, "task": 3}', "task: got no such value"),
        ('{"format": 2, "task": "x", "model": {}, "layer": 1}', "got format 2, expected 1"),
        ('{"format": 1, "task": "x", "model": {}, "layer": 1}', r"model: got \{\}, expected name and sha256"),
    ],
)
def test_damaged_tasks(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        read_vectors(tmp_path, declared())
