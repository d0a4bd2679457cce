"""A record of what transformers reads from a GGUF file, small enough to lie in the repository.

    python -m tests.support.exporters.recorded_reading MODEL.gguf RECORD.json

Reading Gemma 3 270M takes transformers a minute, so tests compare with a record of it: a hash of all parameters of a role,
logits at the end of a text that is longer than the window, and token ids.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

TEXTS = (
    "Hello, world! 1234 don't  you\n\n see 3.14?",
    "<|im_start|>user\nhi<|im_end|>\n",
    "日本語 😀 naïve",
    "  two",
    "a\tb 007",
)
LENGTH = 600  # more than the window of 512
KEPT = 8


def hashes_by_role(model: PreTrainedModel) -> dict[str, str]:
    """Role, such as `model.layers.*.mlp.up_proj.weight` -> sha256 of its names and float32 values, layer by layer."""
    found: dict[str, Any] = {}
    for name, values in model.named_parameters():
        role = found.setdefault(re.sub(r"\.\d+\.", ".*.", name), hashlib.sha256())
        role.update(name.encode())
        role.update(values.detach().contiguous().numpy())
    return {role: digest.hexdigest() for role, digest in found.items()}


def last_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits [KEPT, V] at the last positions of LENGTH random tokens."""
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(0, vocabulary, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=tokens, logits_to_keep=KEPT).logits[0]


def summary(logits: torch.Tensor) -> dict[str, list[Any]]:
    """The highest tokens, their logits, and log(sum(exp(logits))), of each position."""
    best = logits.max(-1)
    return {
        "tokens": best.indices.tolist(),
        "logits": best.values.tolist(),
        "logsumexp": logits.logsumexp(-1).tolist(),
    }


def record(file: Path) -> dict[str, Any]:
    """The record of transformers' own reading."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return {
        "transformers": transformers.__version__,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "parameters": hashes_by_role(model),
        "last_logits": summary(last_logits(model)),
        "token_ids": [tokenizer(text)["input_ids"] for text in TEXTS],
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(record(Path(sys.argv[1])), indent=1) + "\n")
