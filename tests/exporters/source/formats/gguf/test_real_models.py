"""Tests with files that others made: values, logits and token ids are those of transformers' own reading.

SmolLM2 is read by transformers here. Gemma 3 takes it a minute, so a record of its reading lies next to this file;
`tests/support/exporters/recorded_reading.py` makes it anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference
from tests.support.exporters.recorded_reading import TEXTS, hashes_by_role, last_logits, summary
from tests.support.real_models import real_model

pytestmark = [pytest.mark.real, pytest.mark.slow]

RECORD = Path(__file__).with_name("gemma3_270m.json")


def token_ids(file: Path) -> list[list[int]]:
    """The ids of TEXTS as an engine has them, of a file all of whose parts are used."""
    opened = open_checkpoint(str(file))
    tokenizer = Tokenizer.from_str(opened.read_file("tokenizer.json").decode())
    assert opened.unused.parts == ()
    return [tokenizer.encode(text).ids for text in TEXTS]


def test_values_and_logits_of_smollm2() -> None:
    file = real_model("smollm2")
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours = load_reference(str(file), ())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert all(torch.equal(ours.get_parameter(name), value) for name, value in theirs.named_parameters())
    torch.testing.assert_close(last_logits(ours), last_logits(theirs), rtol=0, atol=1e-4)


def test_token_ids_of_smollm2() -> None:
    file = real_model("smollm2")
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert token_ids(file) == [theirs(text)["input_ids"] for text in TEXTS]


def test_gemma3_is_what_transformers_read() -> None:
    file, recorded = real_model("gemma3"), json.loads(RECORD.read_text())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == recorded["sha256"]
    assert token_ids(file) == recorded["token_ids"]
    ours = load_reference(str(file), ())
    assert hashes_by_role(ours) == recorded["parameters"]
    found, expected = summary(last_logits(ours)), recorded["last_logits"]
    assert found["tokens"] == expected["tokens"]
    for name in ("logits", "logsumexp"):  # the order of sums differs between machines: 1e-5 of logits of 20
        assert found[name] == pytest.approx(expected[name], abs=1e-3)
