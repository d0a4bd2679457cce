"""Tests of the model repository: it is complete, written atomically, and refused if it could not serve.

The tests in tests/serving serve it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from enginewright.builders.triton.repository import TritonModel, render_config, write_model
from enginewright.runtime import cli
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import BuiltGraph
from enginewright.runtime.errors import ArtifactError, BuildError
from enginewright.runtime.triton.ports import INPUTS, OUTPUTS


def files_under(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_the_repository_holds_the_whole_engine(exported: Path, tmp_path: Path) -> None:
    target = write_model(exported, tmp_path / "repo", TritonModel(name="a-model.1"))
    manifest = directory.load(exported)
    engine = {f"1/engine/{file.path}" for file in manifest.files()}
    assert files_under(target) == {"config.pbtxt", "1/model.py", "1/engine/manifest.json", *engine}
    assert directory.load(target / "1/engine") == manifest
    data = manifest.graphs["decoder"].files[-1].path
    assert (target / "1/engine" / data).stat().st_ino == (exported / data).stat().st_ino, "linked, not copied"
    assert target == tmp_path / "repo/a-model.1"
    compile((target / "1/model.py").read_text(), "model.py", "exec")


def test_files_are_copied_where_links_cannot_be_made(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    target = write_model(exported, tmp_path, TritonModel(name="copied"))
    assert directory.load(target / "1/engine") == directory.load(exported)


def test_the_config_declares_the_signature(exported: Path) -> None:
    manifest = directory.load(exported)
    text = render_config("m", manifest, TritonModel(instances=2, max_queue=0, threads=1, cache_tokens=4096))
    for port in INPUTS:
        dims = list(port.dims)
        assert f'{{ name: "{port.name}" data_type: TYPE_{port.type} dims: {dims} optional: true }}' in text
    for port in OUTPUTS:
        assert f'{{ name: "{port.name}" data_type: TYPE_{port.type} dims: {list(port.dims)} }}' in text
    assert "decoupled: true" in text and "num_versions: 1" in text
    assert "{ count: 2 kind: KIND_CPU }" in text
    for name, value in (("max_queue", 0), ("threads", 1), ("cache_tokens", 4096)):
        assert f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}' in text
    assert "prefill_chunk" not in text
    engine = BuiltGraph(backend="onnxruntime-cuda", version="1", compute="sm90", files=())
    batched = render_config("m", manifest, TritonModel(openai=True))
    assert "max_batch_size: 1" in batched and '"max_tokens" data_type: TYPE_INT32 dims: [1] optional' in batched
    assert "max_batch_size: 0" in text and "TYPE_INT32" not in text and "TYPE_INT64" not in batched
    graphs = {"decoder": dataclasses.replace(manifest.graphs["decoder"], engines=(engine,))}
    with_gpu = dataclasses.replace(manifest, graphs=graphs)
    assert "KIND_MODEL" in render_config("m", with_gpu, TritonModel())
    on_cpu = render_config("m", with_gpu, TritonModel(backend="onnxruntime"))
    assert "KIND_CPU" in on_cpu and 'key: "backend" value { string_value: "onnxruntime" }' in on_cpu


def test_overwriting_takes_the_flag_and_spares_what_is_not_ours(exported: Path, tmp_path: Path) -> None:
    target = write_model(exported, tmp_path, TritonModel(name="m"))
    with pytest.raises(ArtifactError, match="--overwrite"):
        write_model(exported, tmp_path, TritonModel(name="m"))
    write_model(exported, tmp_path, TritonModel(name="m", max_queue=7), overwrite=True)
    assert 'string_value: "7"' in (target / "config.pbtxt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["m"], "nothing of the old one or of the stage is left"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.pbtxt").write_text("")
    with pytest.raises(ArtifactError, match="not overwritten"):
        write_model(exported, tmp_path, TritonModel(name="theirs"), overwrite=True)


def test_a_failure_leaves_the_old_model(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_model(exported, tmp_path, TritonModel(name="m"))
    before = files_under(target)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="No space"):
        write_model(exported, tmp_path, TritonModel(name="m"), overwrite=True)
    assert files_under(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "with space", 'quote"', "-x", "line\n"])
def test_names_that_cannot_be_folders(name: str) -> None:
    with pytest.raises(BuildError, match="name: got"):
        TritonModel(name=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instances": 0}, "instances: got 0, expected 1 or more"),
        ({"max_queue": -1}, "max_queue: got -1, expected 0 or more"),
        ({"threads": 0}, "threads: got 0"),
        ({"cache_tokens": 0}, "cache_tokens: got 0"),
    ],
)
def test_numbers_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        TritonModel(**options)


def test_what_the_engine_cannot_serve(exported: Path, tmp_path: Path) -> None:
    limit = directory.load(exported).limits.max_batch
    with pytest.raises(BuildError, match=f"expected 1 to {limit}, the engine's limit"):
        write_model(exported, tmp_path / "repo", TritonModel(max_batch=limit + 1))
    with pytest.raises(BuildError, match="backend: got 'tensorrt', expected one of onnxruntime, which"):
        write_model(exported, tmp_path / "repo", TritonModel(backend="tensorrt"))
    with pytest.raises(ArtifactError, match="expected an engine directory"):
        write_model(tmp_path, tmp_path / "repo", TritonModel())
    broken = shutil.copytree(exported, tmp_path / "broken")
    directory.save(dataclasses.replace(directory.load(broken), graphs={}), broken)
    with pytest.raises(BuildError, match="expected one named 'decoder'"):
        write_model(broken, tmp_path / "repo", TritonModel(name="m"))
    directory.save(dataclasses.replace(directory.load(exported), name="a/b"), broken)
    with pytest.raises(BuildError, match="pass --name"):
        write_model(broken, tmp_path / "repo", TritonModel())
    assert not (tmp_path / "repo").exists()


def test_the_command(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run: Callable[..., int] = lambda *more: cli.main(["triton", str(exported), "--output", str(tmp_path / "r"), *more])  # noqa: E731
    assert run("--name", "m", "--instances", "2", "--max-queue", "5") == 0
    assert "tritonserver --model-repository=" in capsys.readouterr().out
    assert "count: 2" in (tmp_path / "r/m/config.pbtxt").read_text()
    assert run("--name", "m") == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert run("--name", "m", "--overwrite") == 0
    assert run("--name", "a/b") == 2
    assert "enginewright triton: error: name: got 'a/b'" in capsys.readouterr().err
