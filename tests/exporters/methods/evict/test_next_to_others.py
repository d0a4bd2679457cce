"""Engines that evict with other methods at once: rows of one batch are as alone, and each method still acts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.steering.vector_folder import write_vectors
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime import Sampling, cli, load
from tests.support.exporters.gate_files import write_head_gates, write_token_gates
from tests.support.exporters.reasoner_engines import MODEL, Engines, alone, prompts_of, together
from tests.support.paths import EXAMPLES

pytestmark = [pytest.mark.native, pytest.mark.slow]

EVICT = "evict:budget=24,interval=6"
KINDS = ("rkv", "trim", "duo")
LORA = EXAMPLES / "tiny-reasoner-lora"
PLAIN = Sampling(max_tokens=60, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def evict(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The methods' options by score or allocation."""
    folder = tmp_path_factory.mktemp("gates")
    gates = write_token_gates(MODEL, folder / "gates.safetensors")
    heads = write_head_gates(MODEL, folder / "heads.json", ((0.1, 0.2), (0.9, 0.3), (0.4, 0.8), (0.5, 0.6)))
    return {
        "rkv": EVICT,
        "trim": f"{EVICT},score=trim,gates={gates}",
        "duo": f"{EVICT},sinks=4,allocation=duo,head_gates={heads}",
    }


@pytest.fixture
def calm(tmp_path: Path) -> Path:
    """A folder with a vector that changes answers."""
    checkpoint = open_checkpoint(str(MODEL))
    vector = np.random.default_rng(0).normal(0, 6, checkpoint.config.hidden_size).astype(np.float32)
    given = {"name": "it", "sha256": hash_of(checkpoint)}
    write_vectors(tmp_path / "calm", {"dfv.0": vector, "fv": vector}, task="calm", model=given, layer=0, more={})
    return tmp_path / "calm"


@pytest.mark.parametrize("kind", KINDS)
def test_steering_and_adapters(kind: str, evict: dict[str, str], engine: Engines, calm: Path) -> None:
    with load(engine(evict[kind], "steering:capacity=1", "adapters:capacity=1,rank=8"), 1) as llm:
        llm.load_vector(calm)
        llm.load_adapter(LORA, "task")
        asked = prompts_of(llm, 2)
        samplings = [PLAIN, *(Sampling(max_tokens=60, ignore_eos=True, **own) for own in _OWN)]  # type: ignore[arg-type]
        found = together(llm, asked, samplings)
        assert found == alone(llm, asked, samplings)
        plain = together(llm, asked, [PLAIN] * 4)
    assert [own == other for own, other in zip(found, plain, strict=True)] == [True, False, False, False]
    with load(engine(evict[kind]), 1) as llm:
        assert together(llm, asked, [PLAIN] * 4) == plain


_OWN = ({"vector": "calm"}, {"adapter": "task", "adapter_scale": 4.0}, {"adapter": "task", "vector": "calm"})


MERGED, CODED = f"lora:path={LORA}", "piso:bits=4,group_size=32,sequences=4,length=64,work={work}"


@pytest.mark.parametrize(
    ("other", "kind"), [(MERGED, "rkv"), (MERGED, "trim"), (MERGED, "duo"), (CODED, "rkv"), (CODED, "trim")]
)
def test_methods_that_change_weights(
    other: str, kind: str, evict: dict[str, str], engine: Engines, tmp_path: Path
) -> None:
    with load(engine(other.format(work=tmp_path / "work"), evict[kind]), 1) as llm:
        asked = prompts_of(llm, 2)
        assert together(llm, asked, [PLAIN] * 4) == alone(llm, asked, [PLAIN] * 4)


def test_perplexity_in_any_batch(engine: Engines, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for batch in (1, 4):
        arguments = ["--suite", "perplexity", "--limit", 8, "--max-batch", batch]
        root = engine(EVICT)
        assert cli.main(["eval", str(root), *map(str, arguments), "--json", "--no-report", "--threads", "1"]) == 0
        found.append(json.loads(capsys.readouterr().out)["engines"][0])
    assert [each.pop("timing")["seconds"] > 0 for each in found] == [True, True]
    assert found[0] == found[1]


def test_turns_of_a_conversation_are_those_of_a_fresh_engine(engine: Engines) -> None:
    root = engine(EVICT)
    questions = ("What is 3 + 4 * 2?", "And 9 - 5?", "What is 12 + 30 - 7 + 1?")
    messages: list[dict[str, str]] = []
    asked, answers, reused = [], [], []
    with load(root, 1) as llm:
        for question in questions * 2:
            messages.append({"role": "user", "content": question})
            asked.append(llm.apply_chat_template(messages))
            completion = llm.generate([asked[-1]], Sampling(max_tokens=70, ignore_eos=True))[0]
            messages.append({"role": "assistant", "content": completion.text})
            answers.append(completion.token_ids)
            reused.append(completion.reused_tokens)
    assert reused[0] == 0 and max(reused) >= 128, "of prompts, up to the queries of their scores"
    for prompt, answer in zip(asked, answers, strict=True):
        with load(root, 1) as fresh:
            assert fresh.generate([prompt], Sampling(max_tokens=70, ignore_eos=True))[0].token_ids == answer
