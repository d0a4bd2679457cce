"""Adapters and vectors over a real tritonserver: every request has those that it names, and the tokens of this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.steering.vector_folder import write_vectors
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime import Sampling, cli, load
from tests.support.exporters.adapters import train_with_peft
from tests.support.exporters.reasoner_engines import MODEL as CHECKPOINT
from tests.support.exporters.reasoner_engines import Engines
from tests.support.serving import tritonserver
from tests.support.serving.streams import MODEL, Stream, ask, generate
from tests.support.serving.tritonserver import Installation, Server

pytestmark = [pytest.mark.native, pytest.mark.slow]

QUESTION = [{"role": "user", "content": "What is 47 + 385?"}]
PLAIN: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True}
ASKED: list[dict[str, Any]] = [
    PLAIN,
    {**PLAIN, "adapter": "terse"},
    {**PLAIN, "adapter": "terse", "adapter_scale": 2.0},
    {**PLAIN, "vector": "calm"},
    {**PLAIN, "vector": "calm", "vector_scale": -2.0},
    {**PLAIN, "adapter": "terse", "vector": "calm"},
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that has one adapter and one vector from the beginning."""
    root = tmp_path_factory.mktemp("named")
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    adapter = train_with_peft(model, root / "terse", target_modules="all-linear", r=8, lora_alpha=32)
    checkpoint = open_checkpoint(str(CHECKPOINT))
    vector = np.random.default_rng(0).normal(0, 6, checkpoint.config.hidden_size).astype(np.float32)
    given = {"name": "it", "sha256": hash_of(checkpoint)}
    write_vectors(root / "calm", {"dfv.0": vector, "fv": vector}, task="calm", model=given, layer=0, more={})
    named = f"adapters:capacity=1,rank=8,load={adapter}", f"steering:capacity=1,vectors={root / 'calm'}"
    return Engines(root)(*named)


@pytest.fixture(scope="module")
def adapting(installation: Installation, engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of that engine."""
    root = tmp_path_factory.mktemp("served")
    assert cli.main(["triton", str(engine), "--output", str(root / "models"), "--name", MODEL, "--threads", "1"]) == 0
    with tritonserver.serve(installation, root / "models", root / "log") as running:
        yield running


def test_every_request_has_what_it_names(adapting: Server, engine: Path) -> None:
    """Sent at once, so that they share steps; `lora_name` is how clients of other backends name an adapter."""
    with load(engine, threads=1) as llm:
        expected = [llm.chat(QUESTION, Sampling(**each)).token_ids for each in ASKED]
    assert len(set(expected)) == len(ASKED)
    sent = [*ASKED, {**PLAIN, "lora_name": "terse"}]
    with Stream(adapting) as stream:
        names = [stream.send(messages=json.dumps(QUESTION), stream=True, **each) for each in sent]
        assert [stream.answer(name).token_ids for name in names] == [*expected, expected[1]]


@pytest.mark.parametrize("name", ["adapter", "vector", "lora_name"])
def test_an_unknown_name_fails_its_own_request(adapting: Server, name: str) -> None:
    before = generate(adapting, text_input="1 + 2", vector="calm", **PLAIN)
    refused = ask(adapting, text_input="1 + 2", **{name: "nobody"}, **PLAIN)
    assert "'nobody'" in str(refused.error)
    assert generate(adapting, text_input="1 + 2", vector="calm", **PLAIN) == before
