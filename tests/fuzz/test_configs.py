"""Changed config.json, generation_config.json and index files of checkpoints: an export reads them or names what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.generation.defaults import read_defaults
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import load_skeleton
from tests.support.exporters.families import make_model
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.fuzzing.attempts import attempt
from tests.support.fuzzing.mutations import change_text, changed
from tests.support.fuzzing.read_corpus import read_corpus
from tests.support.fuzzing.rounds import draws, rounds

FAMILIES = ("qwen3", "gemma2", "llama", "mixtral")
GENERATION = {"eos_token_id": [1, 2], "temperature": 0.6, "top_k": 20, "do_sample": True, "stop_strings": ["x"]}


def read(model: Path) -> None:
    """Do what an export does before it captures a graph."""
    checkpoint = open_checkpoint(str(model))
    skeleton = load_skeleton(checkpoint, attention="eager", max_context=min(checkpoint.longest_context or 64, 1 << 20))
    bind_parameters(checkpoint, skeleton.model)
    read_defaults(checkpoint, (), has_tokenizer=True)


@pytest.fixture
def model(request: pytest.FixtureRequest, checkpoint: CheckpointMaker, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be changed."""
    return Path(shutil.copytree(checkpoint(request.param), tmp_path / "model"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_changed_configs(model: Path) -> None:
    valid = json.loads((model / "config.json").read_text())
    rng = draws(0)
    for _ in range(rounds(15)):
        text = change_text(rng, valid)
        (model / "config.json").write_bytes(text)
        attempt(text, lambda: read(model))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", FAMILIES[:1], indirect=True)
def test_changed_generation_settings(model: Path) -> None:
    rng = draws(1)
    for _ in range(rounds(30)):
        text = change_text(rng, GENERATION)
        (model / "generation_config.json").write_bytes(text)
        attempt(text, lambda: read(model))


@pytest.mark.filterwarnings("ignore")
def test_changed_indexes(tmp_path: Path) -> None:
    make_model("qwen2").save_pretrained(tmp_path, max_shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    valid = json.loads(index.read_text())
    rng = draws(2)
    for _ in range(rounds(20)):
        text = change_text(rng, valid)
        index.write_bytes(text)
        attempt(text, lambda: read(tmp_path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", FAMILIES[:1], indirect=True)
@pytest.mark.parametrize("case", read_corpus("configs"), ids=str)
def test_what_once_failed(model: Path, case: dict[str, Any]) -> None:
    valid = {"rope_parameters": {}, **json.loads((model / "config.json").read_text())}
    (model / "config.json").write_text(json.dumps(changed(valid, tuple(case["path"]), case["value"])))
    attempt(case, lambda: read(model))
