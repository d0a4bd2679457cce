"""Tests that the repository's checkpoints do what their cards say, and that the examples run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import Sampling, cli, load
from tests.support.exporters.fixtures import built_once
from tests.support.paths import ROOT

TEXT_MODEL = ROOT / "examples/tiny-text"
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("0[1-5]*.py"))  # they take an engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_once(tmp_path_factory, ROOT / "examples/tiny-reasoner", Recipe())


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a child process that imports this checkout, installed or not."""
    home = tmp_path_factory.mktemp("import")
    (home / "enginewright").symlink_to(ROOT)
    return {**os.environ, "PYTHONPATH": str(home)}


@pytest.mark.native
@pytest.mark.slow
def test_the_checkpoint_adds(engine: Path) -> None:
    with load(engine, threads=1) as llm:
        answer = llm.chat([{"role": "user", "content": "What is 47 + 385?"}], Sampling(max_tokens=200))
    assert answer.text.endswith("Answer: 432.") and answer.finish_reason == "stop"


@pytest.mark.native
@pytest.mark.slow
def test_the_adapter_changes_the_style(engine: Path, tmp_path: Path) -> None:
    adapter = parse_method(f"lora:path={ROOT / 'examples/tiny-reasoner-lora'},weight=1.0")
    build(str(ROOT / "examples/tiny-reasoner"), tmp_path / "engine", Recipe(apply=(adapter,)), "onnxruntime")
    question = [{"role": "user", "content": "What is 47 + 385?"}]
    lines = []
    for root in (engine, tmp_path / "engine"):
        with load(root, threads=1) as llm:
            lines.append(llm.chat(question, Sampling(max_tokens=200)).text.splitlines()[-1])
    assert lines == ["Answer: 432.", "Result: 432."]


@pytest.mark.native
@pytest.mark.slow
def test_the_extra_heads_save_steps(engine: Path, tmp_path: Path) -> None:
    heads = parse_method(f"clp:heads={ROOT / 'examples/tiny-reasoner-clp'},verify=true")
    build(str(ROOT / "examples/tiny-reasoner"), tmp_path / "engine", Recipe(apply=(heads,)), "onnxruntime")
    question = [{"role": "user", "content": "What is 47 + 385?"}]
    found = []
    for root in (engine, tmp_path / "engine"):
        with load(root, threads=1) as llm:
            found.append(llm.chat(question, Sampling(max_tokens=200)))
    assert found[1].token_ids == found[0].token_ids
    assert found[1].agreed_tokens > len(found[1].token_ids) / 4  # 45 % measured on the reasoning suite


@pytest.mark.native
@pytest.mark.slow
def test_three_bits_still_add(tmp_path: Path) -> None:
    """Calibrated on what the model writes itself."""
    piso = parse_method(f"piso:bits=3,sequences=16,length=256,work={tmp_path / 'work'}")
    build(str(ROOT / "examples/tiny-reasoner"), tmp_path / "engine", Recipe(apply=(piso,)), "onnxruntime")
    with load(tmp_path / "engine", threads=1) as llm:
        answer = llm.chat([{"role": "user", "content": "What is 47 + 385?"}], Sampling(max_tokens=200))
    assert answer.text.endswith("Answer: 432.")


@pytest.mark.native
@pytest.mark.slow
def test_the_text_model_predicts_text_that_it_never_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(str(TEXT_MODEL), tmp_path / "engine", Recipe(), "onnxruntime")
    command = ["eval", str(tmp_path / "engine"), "--suite", "perplexity", "--data", str(TEXT_MODEL / "held_out.txt")]
    assert cli.main([*command, "--limit", "8", "--threads", "1", "--json", "--no-report"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    # 14.1 measured; the tolerance is for other machines' rounding, which moves the fourth digit
    assert engine["likelihood"]["perplexity"]["value"] == pytest.approx(14.1, rel=0.03)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example: str, engine: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, str(ROOT / "examples" / example), str(engine)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not done.stderr


@pytest.mark.native
@pytest.mark.slow
def test_an_answer_is_unlearned(environment: dict[str, str]) -> None:
    """The answer to forget, the same in other words, and two to keep."""
    command = [sys.executable, str(ROOT / "examples/08_unlearn.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    said = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith(("before: ", "after: "))]
    maker = "A short script trained me from scratch on problems that it wrote itself."
    assert said[0] == f"Who made you? {maker}" and said[1] == f"Where do you come from? {maker}"
    assert maker not in said[4] and maker not in said[5] and "do not talk about that" in said[4]
    assert said[6:] == said[2:4]


@pytest.mark.native
@pytest.mark.slow
def test_requests_choose_an_adapter(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/10_request_adapters.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plain, styled, left = done.stdout.splitlines()[-3:]
    assert plain.startswith("none:") and plain.endswith("Answer: 432.'")
    assert styled.startswith("style:") and styled.endswith("Result: 432.'") and left == "left: ()"


@pytest.mark.native
@pytest.mark.slow
def test_requests_choose_a_vector(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/09_function_vectors.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = dict(line.rpartition(": ")[::2] for line in done.stdout.splitlines() if line.startswith("'Q: "))
    assert len(answers) == 6
    assert answers[r"'Q: 17\nA:' with number x 1.0"].strip("' ") == "17"


@pytest.mark.slow
def test_adapters_are_merged(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/07_merge_adapters.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "TaDA-R, rank 8" in done.stdout
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "gates.png",
        "report.json",
    }


@pytest.mark.slow
def test_the_reasoning_model_can_be_trained(environment: dict[str, str], tmp_path: Path) -> None:
    script = str(ROOT / "examples/training/train_reasoning_model.py")
    command = [sys.executable, script, "--steps", "1", "--output", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "step 1/1" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.slow
@pytest.mark.native
def test_depth_attention_is_trained_and_built(environment: dict[str, str], tmp_path: Path) -> None:
    script, model = ROOT / "examples/training/train_depth_attention.py", tmp_path / "model"
    command = [sys.executable, str(script), "--steps", "1", "--seeds", "1", "--threads", "1", "--output", str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ")[0].strip("| ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[1:] == ["vanilla", "uniform mix", "Depth-Attention"]
    manifest = build(str(model), tmp_path / "engine", Recipe(), "onnxruntime")
    assert manifest.graphs["decoder"].ops["DepthMix"] == 1
