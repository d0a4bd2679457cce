"""Writes a Llama or Qwen checkpoint as a GGUF file for llama.cpp, unquantised or quantised by llama.cpp itself.

    pip install gguf safetensors llama-cpp-python
    python -m benchmarks.peers.write_gguf --checkpoint CHECKPOINT --output FILE.gguf --type q4_0 --pure

For benchmarks: the file has no tokenizer, so prompts are token ids. `--type f32` and `f16` only rename the tensors, which
needs no llama-cpp-python. `q4_0` gives the result of `llama-quantize`. With `--pure` every matrix is in Q4_0 blocks, as in
enginewright's int4 engines. Without it, a tied embedding or else the output projection is in Q6_K, or in Q8_0 if its rows are
no multiple of 256.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAMILIES = ("llama", "qwen2", "qwen3")  # GGUF's name of the architecture is transformers' model_type
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Architecture:
    """The model's metadata; created by `read_architecture`.

    integers, floats: GGUF's keys, without the family's name before them.
    """

    family: str
    query_heads: int
    kv_heads: int
    integers: dict[str, int]
    floats: dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="directory with config.json and safetensors")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--type", required=True, choices=("f32", "f16", "q4_0"))
    parser.add_argument("--pure", action="store_true", help="q4_0: every matrix, none in a wider type")
    args = parser.parse_args()
    if args.output.exists():
        parser.error(f"{args.output}: exists; choose another --output")
    if args.pure and args.type != "q4_0":
        parser.error("--pure: belongs to --type q4_0")
    architecture = read_architecture(json.loads((args.checkpoint / "config.json").read_text()))
    if args.type != "q4_0":
        write(architecture, args.checkpoint, args.output, args.type)
        return 0
    halves = args.output.with_suffix(".f16.gguf")
    write(architecture, args.checkpoint, halves, "f16")
    quantize(halves, args.output, pure=args.pure)
    halves.unlink()
    return 0


def read_architecture(config: dict[str, Any]) -> Architecture:
    """The metadata of the model that a transformers config describes.

    Raises:
        SystemExit: this module cannot write the family or its rotary scaling.
    """
    family = config["model_type"]
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 1e4)} | (
        config.get("rope_scaling") or {}
    )
    if family not in FAMILIES:
        raise SystemExit(f"config.json: model_type {family!r}, expected one of {', '.join(FAMILIES)}")
    if rope.get("rope_type", "default") != "default":
        raise SystemExit(f"config.json: rope_type {rope['rope_type']!r}, expected 'default'")
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    integers = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.dimension_count": width,
        "vocab_size": config["vocab_size"],
    }
    floats = {"attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "rope.freq_base": rope["rope_theta"]}
    return Architecture(family, heads, config["num_key_value_heads"], integers, floats)


def gguf_name(name: str) -> str:
    """GGUF's name for a transformers parameter, such as blk.3.attn_q.weight.

    Raises:
        KeyError: GGUF has no such parameter.
    """
    stem, _, kind = name.rpartition(".")
    layer = LAYER.fullmatch(stem)
    return f"{TOP[stem]}.{kind}" if layer is None else f"blk.{layer[1]}.{IN_LAYER[layer[2]]}.{kind}"


def gguf_rows(tensor: NDArray[Any], name: str, architecture: Architecture) -> NDArray[Any]:
    """The parameter with its rows in GGUF's order; `name` is its GGUF name.

    In a Llama's query and key heads llama.cpp rotates neighbours (0, 1), (2, 3) ..., and transformers rotates halves
    (0, d / 2), (1, d / 2 + 1) ...; so the rows of a head are interleaved. In a Qwen's heads both rotate halves.
    """
    part = name.split(".")[-2]
    if architecture.family != "llama" or part not in ("attn_q", "attn_k"):
        return tensor
    heads = architecture.query_heads if part == "attn_q" else architecture.kv_heads
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)


def write(architecture: Architecture, checkpoint: Path, output: Path, kind: str) -> None:
    """Write the GGUF file: matrices as `kind`, f16 or f32; vectors as f32, which llama.cpp requires."""
    import gguf

    writer = gguf.GGUFWriter(output, architecture.family, use_temp_file=True)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if kind == "f16" else gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    for key, number in architecture.integers.items():
        writer.add_uint32(f"{architecture.family}.{key}", number)
    for key, value in architecture.floats.items():
        writer.add_float32(f"{architecture.family}.{key}", value)
    for name, tensor in read_tensors(checkpoint):
        stored = gguf_name(name)
        rows = gguf_rows(tensor, stored, architecture)
        writer.add_tensor(stored, rows.astype(np.float16 if kind == "f16" and rows.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def read_tensors(checkpoint: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """The names and tensors, float16 or float32, in the checkpoint's files."""
    from safetensors import safe_open

    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                yield name, tensors.get_tensor(name)


def quantize(source: Path, target: Path, *, pure: bool) -> None:
    """Write `source` as Q4_0, with llama.cpp's own function."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, pure
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        raise SystemExit(f"{source}: llama.cpp cannot quantise it; its log says why")


if __name__ == "__main__":
    sys.exit(main())
