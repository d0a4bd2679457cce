"""Changed LoRA adapters: the merge of an export and the runtime's reading take them or name what is wrong."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime.artifact.adapters.settings import read_settings
from enginewright.runtime.artifact.safetensors_file import read_floats
from tests.fuzz.attempts import attempt
from tests.fuzz.mutations import change_bytes, change_text, changed
from tests.fuzz.read_corpus import read_corpus
from tests.support.fuzzing import rounds
from tests.support.paths import ROOT

ADAPTER = ROOT / "examples/tiny-reasoner-lora"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
VALID = {**json.loads((ADAPTER / CONFIG).read_text()), "rank_pattern": {"q_proj": 4}, "modules_to_save": ["lm_head"]}


def read(folder: Path) -> None:
    """Read the settings, and what they say of a layer."""
    settings = read_settings(folder)
    settings.rank_of("model.layers.0.self_attn.q_proj")
    settings.scaling("model.layers.0.self_attn.q_proj")


def test_changed_settings(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(rounds(400)):
        text = change_text(rng, VALID)
        (tmp_path / CONFIG).write_bytes(text)
        attempt(text, lambda: read(tmp_path))


def test_changed_factors(tmp_path: Path) -> None:
    content, rng = (ADAPTER / WEIGHTS).read_bytes(), random.Random(1)
    for _ in range(rounds(60)):
        changed_content = change_bytes(rng, content[:4000]) + content[4000:]
        (tmp_path / WEIGHTS).write_bytes(changed_content)
        attempt(changed_content[:200], lambda: read_floats(tmp_path / WEIGHTS, 1 << 22))


@pytest.mark.parametrize("case", read_corpus("adapters"), ids=str)
def test_what_once_failed(tmp_path: Path, case: dict[str, Any]) -> None:
    shutil.copy(ADAPTER / WEIGHTS, tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(changed(VALID, tuple(case["path"]), case["value"])))
    attempt(case, lambda: read(tmp_path))
