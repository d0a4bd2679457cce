"""Tests of `build_engine.py` and `enginewright check` as users run them: processes, exit codes, files on disk."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enginewright.runtime import cli
from enginewright.runtime.artifact import directory
from tests.support.exporters.families import make_model
from tests.support.exporters.fixtures import checkpoint_once
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer, biases and a tied output projection."""
    return checkpoint_once(tmp_path_factory, "qwen2", num_hidden_layers=1)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which a process finds the package, installed or not."""
    package = tmp_path_factory.mktemp("path")
    (package / "enginewright").symlink_to(ROOT)
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def command(*arguments: str | Path) -> list[str]:
    """The command line of build_engine.py."""
    return [sys.executable, str(ROOT / "build_engine.py"), *map(str, arguments)]


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file under `root`."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def built(checkpoint: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that build_engine.py wrote, alone in its folder."""
    output = tmp_path_factory.mktemp("built") / "engine"
    arguments = (
        "--model",
        checkpoint,
        "--output",
        output,
        "--kv-bits",
        "32",
        "--max-batch",
        "3",
        "--max-context",
        "64",
    )
    done = subprocess.run(command(*arguments), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"{output}: " in done.stdout and " MB in " in done.stdout
    assert "it takes and gives token ids alone" in done.stdout
    assert done.stderr == "", "quiet where nobody watches"
    return output


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / "place" / "engine"))


@pytest.mark.native
@pytest.mark.slow
def test_build_writes_an_engine(built: Path) -> None:
    manifest = directory.load(built)
    assert (manifest.limits.max_batch, manifest.limits.max_context, manifest.cache.kv_bits) == (3, 64, 32)
    assert [e.backend for e in manifest.graphs["decoder"].engines] == ["onnxruntime"]
    assert manifest.model.family == "qwen2" and manifest.model.eos_token_ids == (2,)
    assert os.listdir(built.parent) == ["engine"]
    assert {p.name for p in built.iterdir()} == {"manifest.json", "graphs", "engines", "reports"}


@pytest.mark.native
@pytest.mark.slow
def test_an_engine_is_replaced_only_when_told(
    engine: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(engine)
    arguments = ["build", "--model", str(checkpoint), "--output", str(engine), "--kv-bits", "16"]
    assert cli.main(arguments) == 2
    assert f"{engine}: exists; pass --overwrite" in capsys.readouterr().err
    assert snapshot(engine) == before
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert directory.load(engine).cache.kv_bits == 16
    assert os.listdir(engine.parent) == ["engine"]


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--max-context", "513"], ["--apply", "lora:path=/no/where"], ["--model", "/no"]])
def test_a_failed_overwrite_keeps_the_engine(
    flags: list[str], engine: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(engine)
    arguments = ["build", "--model", str(checkpoint), "--output", str(engine), "--overwrite", *flags]
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith("enginewright build: error: ")
    assert snapshot(engine) == before and os.listdir(engine.parent) == ["engine"]


@pytest.mark.native
@pytest.mark.slow
def test_a_full_disk_keeps_the_engine(engine: Path, checkpoint: Path, environment: dict[str, str]) -> None:
    """RLIMIT_FSIZE simulates a full disk: writing the weights fails half way."""
    before = snapshot(engine)
    done = subprocess.run(
        command("--model", checkpoint, "--output", engine, "--overwrite"),
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert f"error: {engine}: cannot be written" in done.stderr and "nothing was changed" in done.stderr
    assert snapshot(engine) == before and os.listdir(engine.parent) == ["engine"]


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_leaves_nothing_behind(
    sent: signal.Signals, code: int, checkpoint: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "engine"
    process = subprocess.Popen(
        command("--model", checkpoint, "--output", output),
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background shell ignores it
    )
    deadline = time.monotonic() + 120
    while not any(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)  # until the staging directory is there, so that the build is under way
    assert process.poll() is None, "ended before it could be interrupted"
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert "Traceback" not in error
    assert not any(tmp_path.iterdir())


@pytest.mark.native
@pytest.mark.slow
def test_check_tells_whose_engine_it_is(
    engine: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["check", str(engine), "--threads", "1", "--new-tokens", "8", "--json", "--model"]
    assert cli.main([*check, str(checkpoint)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["failures"] == [] and report["max_error"] < 1e-5
    assert json.loads((engine / "reports/parity.json").read_text()) == report

    other = make_model("qwen2", num_hidden_layers=1, gain=1.5)  # the same shapes, other values
    other.save_pretrained(tmp_path / "other")
    assert cli.main([*check, str(tmp_path / "other")]) == 1
    report = json.loads(capsys.readouterr().out)
    assert "max error" in report["failures"][0]
    assert json.loads((engine / "reports/parity.json").read_text()) == report
    directory.load(engine)  # reports are not part of what is checked


@pytest.mark.native
@pytest.mark.slow
def test_check_of_what_cannot_be_compared(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(tmp_path / "none"), "--model", str(tmp_path)]) == 2
    assert "got no manifest.json" in capsys.readouterr().err
    assert cli.main(["check", str(engine), "--model", str(tmp_path)]) == 2
    assert "got no checkpoint of a known format" in capsys.readouterr().err
    for other, what in (
        ({"vocab_size": 300}, "vocabulary 300, expected"),
        ({"hidden_size": 32}, "hidden size 32, expected"),
    ):
        make_model("qwen2", num_hidden_layers=1, **other).save_pretrained(tmp_path / "other")
        assert cli.main(["check", str(engine), "--model", str(tmp_path / "other")]) == 2
        assert f"other: got a model of {what}" in capsys.readouterr().err
    make_model("llama", num_hidden_layers=1).save_pretrained(tmp_path / "other")
    assert cli.main(["check", str(engine), "--model", str(tmp_path / "other")]) == 2
    assert "got a model of family llama, expected qwen2 as the engine has" in capsys.readouterr().err
    assert cli.main(["check", str(engine), "--model", str(engine)]) == 2
    assert "got an engine directory, expected a checkpoint" in capsys.readouterr().err
    data = engine / "graphs/decoder.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x7f")
    assert cli.main(["check", str(engine), "--model", str(tmp_path)]) == 2
    assert "decoder.onnx.data: content differs from manifest.json (sha256)" in capsys.readouterr().err
