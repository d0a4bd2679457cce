"""Checkpoints of codes: random models whose matrices the library compressed-tensors compresses, with its own restored numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.mxfp6.helpers import unpack_fp6_from_uint8
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


@dataclass
class Stored:
    """A checkpoint that is not written yet; a test changes it before.

    config: of config.json.
    tensors: by name.
    twin: the numbers that each matrix stands for, by the name "X.weight".
    files: other JSON files.
    """

    config: dict[str, Any]
    tensors: Tensors
    twin: Tensors = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The `quantization_config`."""
        found: dict[str, Any] = self.config["quantization_config"]
        return found

    def write(self, root: Path) -> Path:
        """Write the checkpoint, and return its directory."""
        root.mkdir(parents=True, exist_ok=True)
        (root / "config.json").write_text(json.dumps(self.config))
        for name, content in self.files.items():
            (root / name).write_text(json.dumps(content))
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, root / WEIGHTS)
        return root

    def write_twin(self, root: Path) -> Path:
        """Write the same model as numbers, and return its directory."""
        root.mkdir(parents=True, exist_ok=True)
        config = {key: value for key, value in self.config.items() if key != "quantization_config"}
        (root / "config.json").write_text(json.dumps(config))
        ends = ("_packed", "_scale", "_scale_2", "_shape", "_zero_point", "_g_idx")
        kept = {name: x for name, x in self.tensors.items() if name not in self.twin and not name.endswith(ends)}
        save_file({**kept, **{name: x.contiguous() for name, x in self.twin.items()}}, root / WEIGHTS)
        return root


Change = Callable[[Stored], None]


def put(name: str, tensor: torch.Tensor) -> Change:
    """Puts a tensor into a checkpoint, in the place of one of that name."""

    def change(stored: Stored) -> None:
        stored.tensors[name] = tensor

    return change


def drop(name: str) -> Change:
    """Takes a tensor out of a checkpoint."""

    def change(stored: Stored) -> None:
        del stored.tensors[name]

    return change


def read_plain(root: Path) -> Stored:
    """A checkpoint of one file, float32 and not tied."""
    config = json.loads((root / "config.json").read_text())
    return Stored(config, {name: x.float() for name, x in load_file(root / WEIGHTS).items()})


def weights(bits: int, **settings: Any) -> dict[str, Any]:
    """The settings of weights; keywords as those of compressed-tensors."""
    return {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **settings}


def group(format_name: str, targets: list[str], settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A group of modules."""
    return {"targets": targets, "weights": settings, "format": format_name, **more}


def compress(
    source: Path, groups: Mapping[str, dict[str, Any]], choose: Callable[[str], str], ignore: tuple[str, ...] = ()
) -> Stored:
    """Return `source` with the matrices of the modules for which `choose` returns a group, in that group's format."""
    made = read_plain(source)
    for name in list(made.tensors):
        module = name.removesuffix(".weight")
        if made.tensors[name].ndim != 2 or not (chosen := choose(module)):
            continue
        parts, numbers = compress_matrix(made.tensors.pop(name), groups[chosen])
        made.tensors.update({f"{module}.{part}": tensor for part, tensor in parts.items()})
        made.twin[name] = numbers
    formats = {each["format"] for each in groups.values()}
    made.config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": dict(groups),
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "version": "0.20.1",
    }
    return made


def compress_matrix(matrix: torch.Tensor, settings: dict[str, Any]) -> tuple[Tensors, torch.Tensor]:
    """Return the tensors that the library makes of a matrix, and the float32 numbers that it restores from them."""
    scheme = QuantizationScheme(**settings)
    args: Any = scheme.weights
    compressor = BaseCompressor.get_value_from_registry(settings["format"])
    tiles = _tiles(matrix, args)
    is_whole = args.type == "int"
    top = 2 ** (args.num_bits - 1) if is_whole else {4: 6.0, 6: 7.5, 8: 448.0}[args.num_bits]
    given: Tensors = {"weight": matrix}
    if not args.symmetric:
        low, high = tiles.amin((1, 3)).clamp(max=0), tiles.amax((1, 3)).clamp(min=0)
        scale = ((high - low) / (2**args.num_bits - 1)).clamp(min=1e-6)
        given["weight_zero_point"] = (torch.round(-low / scale) - top).clamp(-top, top - 1).to(torch.int8)
    else:
        scale = (tiles.abs().amax((1, 3)) / top).clamp(min=1e-6)
    if settings["format"].startswith("mxfp"):
        scale = 2.0 ** torch.ceil(torch.log2(scale))
    if settings["format"].startswith("nvfp4"):
        given["weight_global_scale"] = (448.0 / scale.max()).reshape(1)
        scale = (scale * given["weight_global_scale"]).to(torch.float8_e4m3fn).float()
    given["weight_scale"] = scale.reshape(1) if args.strategy == "tensor" else scale
    if "weight_zero_point" in given:
        given["weight_zero_point"] = given["weight_zero_point"].reshape(given["weight_scale"].shape)
    stored = compressor.compress(given, scheme)
    return {name: tensor.contiguous() for name, tensor in stored.items()}, _restore(compressor, stored, scheme)


def _tiles(matrix: torch.Tensor, args: Any) -> torch.Tensor:
    """The matrix as [tiles down, rows, tiles across, columns], padded with zeros."""
    n, k = matrix.shape
    rows, columns = {
        "tensor": (n, k),
        "channel": (1, k),
        "group": (1, args.group_size),
        "tensor_group": (1, args.group_size),
        "block": tuple(args.block_structure or ()),
    }[args.strategy]
    padded = torch.nn.functional.pad(matrix, (0, -k % columns, 0, -n % rows))
    return padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)


def _restore(compressor: Any, stored: Tensors, scheme: QuantizationScheme) -> torch.Tensor:
    """The library's numbers; its own `decompress` of small floats would round them to bfloat16."""
    args: Any = scheme.weights
    if scheme.format not in ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized"):
        numbers: torch.Tensor = compressor.decompress(stored, scheme)["weight"].float()
        return numbers
    packed, scale = stored["weight_packed"], stored["weight_scale"]
    m, width = packed.shape
    unpacked = (
        unpack_fp6_from_uint8(packed, m, width * 4 // 3, torch.float32)
        if args.num_bits == 6
        else unpack_fp4_from_uint8(packed, m, width * 2, torch.float32)
    )
    scale = scale.float() if scheme.format == "nvfp4-pack-quantized" else decompress_mx_scale(scale).float()
    return dequantize(unpacked, scale, args=args, dtype=torch.float32, global_scale=stored.get("weight_global_scale"))
