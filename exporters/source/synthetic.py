"""Writes random-weight checkpoints of well-known shapes, for benchmarks of speed; they say nothing about quality.

    python -m enginewright.exporters.source.synthetic --like qwen2-0.5b --output DIR

Shapes are those of the models' published configs. Weights are normal with standard deviation 0.02, float16, written
one tensor at a time in shards.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedConfig

from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.runtime.errors import ExportError

SHARD_BYTES = 1 << 30

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2-0.5b": (
        "qwen2",
        {
            "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
            "max_position_embeddings": 32768, "rope_theta": 1e6,
        },
    ),
    "qwen2-1.5b": (
        "qwen2",
        {
            "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
            "max_position_embeddings": 32768, "rope_theta": 1e6,
        },
    ),
    "llama3-8b": (
        "llama",
        {
            "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
            "max_position_embeddings": 8192, "rope_theta": 5e5,
        },
    ),
    "qwen3-0.6b": (
        "qwen3",
        {
            "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
            "max_position_embeddings": 40960, "rope_theta": 1e6,
        },
    ),
    "qwen3-8b": (
        "qwen3",
        {
            "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
            "max_position_embeddings": 40960, "rope_theta": 1e6,
        },
    ),
}  # fmt: skip


def shape_config(like: str) -> PreTrainedConfig:
    """Return the config of the shape named `like`; an ExportError about an unknown name lists the known ones."""
    if like not in SHAPES:
        raise ExportError(f"--like: unknown shape {like!r}; known: {', '.join(SHAPES)}")
    family, sizes = SHAPES[like]
    config: PreTrainedConfig = AutoConfig.for_model(family, **sizes)
    return config


def write_checkpoint(config: PreTrainedConfig, output: Path, *, seed: int = 0) -> None:
    """Write a float16 checkpoint of `config` with random weights into `output`, a new directory."""
    output.mkdir(parents=True)
    model = build_skeleton(config, attention="eager", max_context=1).model
    parameters = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    shards, index = _shards(parameters), {}
    for number, shard in enumerate(tqdm(shards, desc="writing shards", disable=None)):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: _random(name, shape, seed) for name, shape in shard}, output / file, {"format": "pt"})
        index.update({name: file for name, _ in shard})
    (output / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))
    config.architectures = [type(model).__name__]
    config.dtype = torch.float16
    config.save_pretrained(output)


def _random(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape, dtype=torch.float16)  # norms
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator).mul_(0.02).half()


def _shards(parameters: list[tuple[str, tuple[int, ...]]]) -> list[list[tuple[str, tuple[int, ...]]]]:
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in parameters:
        width = 2 * math.prod(shape)
        if shards[-1] and size + width > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += width
    return shards


def main() -> int:
    """Run the command line: --like NAME --output DIR [--seed N]."""
    parser = argparse.ArgumentParser(description="Write a random-weight checkpoint of a known shape.")
    parser.add_argument("--like", required=True, help=", ".join(SHAPES))
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.output.exists():
        parser.error(f"{args.output}: exists; choose another --output")
    try:
        write_checkpoint(shape_config(args.like), args.output, seed=args.seed)
    except ExportError as e:
        parser.error(str(e))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
