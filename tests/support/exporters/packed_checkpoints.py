"""Writes random checkpoints of GPTQ, AWQ and FP8, and next to each its twin of the numbers that it stands for.

Codes are packed bit by bit in Python's integers, and numbers are made of the codes directly, without code of the package.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Parts = dict[str, torch.Tensor]
Packer = Callable[[str, tuple[int, ...]], tuple[Parts, np.ndarray]]
"""From a tensor's name and shape to stored tensors, by what follows the module's name, and the numbers."""


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A random matrix of integers in groups.

    codes: [n, k], counted from the lowest; scales: float16 [n, groups]; zeros: [n, groups]; groups: [k], of each column.
    """

    bits: int
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    groups: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """Float32 [n, k]."""
        whole = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, self.groups]
        result: np.ndarray = whole * self.scales.astype(np.float32)[:, self.groups]
        return result


def random_integers(
    n: int, k: int, seed: int, *, bits: int, group_size: int, symmetric: bool = False, act_order: bool = False
) -> Integers:
    """Codes of which each occurs; groups are shuffled with act_order, in the same way for each seed and k."""
    rng = np.random.default_rng(seed)
    size = k if group_size == -1 else group_size
    groups = np.arange(k) // size
    if act_order:
        groups = np.random.default_rng(k).permutation(groups)
    return Integers(
        bits=bits,
        codes=rng.integers(0, 1 << bits, (n, k)),
        scales=((0.5 + rng.random((n, k // size))) * (0.3 / (1 << bits))).astype(np.float16),
        zeros=np.full((n, k // size), 1 << (bits - 1)) if symmetric else rng.integers(1, 1 << bits, (n, k // size)),
        groups=groups,
    )


def words(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Each row of codes as one number, the first code in the lowest bits, cut into int32."""
    count = -(-codes.shape[1] * bits // 32)
    rows = []
    for row in codes.tolist():
        value = sum(code << (bits * place) for place, code in enumerate(row))
        rows.append(np.frombuffer(value.to_bytes(4 * count, "little"), "<i4"))
    return torch.from_numpy(np.stack(rows).copy())


def gptq_parts(made: Integers, *, first_format: bool = True, with_groups: bool = True) -> Parts:
    """The tensors of GPTQ; in the first format zero points are stored less 1."""
    zeros = made.zeros.T - first_format
    parts = {
        "qweight": words(made.codes, made.bits).T.contiguous(),
        "qzeros": words(zeros, made.bits),
        "scales": torch.from_numpy(made.scales.T.copy()),
    }
    return {**parts, "g_idx": torch.from_numpy(made.groups.astype(np.int32))} if with_groups else parts


def awq_parts(made: Integers) -> Parts:
    """The tensors of AWQ's version gemm."""

    def mixed(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(rows), -1, 8)[..., AWQ_ORDER].reshape(len(rows), -1)

    return {
        "qweight": words(mixed(made.codes.T), 4),
        "qzeros": words(mixed(made.zeros.T), 4),
        "scales": torch.from_numpy(made.scales.T.copy()),
    }


def gemv_parts(made: Integers) -> Parts:
    """The tensors of AWQ's version gemv, with zero points and scales filled up to whole words."""
    width = -(-made.zeros.shape[1] // 8) * 8
    padded = np.zeros((len(made.zeros), width - made.zeros.shape[1]))
    return {
        "qweight": words(made.codes, 4),
        "qzeros": words(np.concatenate([made.zeros, padded], axis=1).astype(int), 4),
        "scales": torch.from_numpy(np.concatenate([made.scales, padded], axis=1).astype(np.float16)),
    }


def fp8_blocks(
    shape: tuple[int, ...], seed: int, block: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Random e4m3 numbers [..., n, k], their scales [..., blocks, blocks] and the products, element by element."""
    rng = np.random.default_rng(seed)
    *front, n, k = shape
    numbers = torch.from_numpy(rng.normal(size=shape).astype(np.float32)).to(torch.float8_e4m3fn)
    scales = (0.03 + 0.05 * rng.random((*front, -(-n // block[0]), -(-k // block[1])))).astype(np.float32)
    of_row, of_column = np.arange(n) // block[0], np.arange(k) // block[1]
    products = numbers.float().numpy() * scales[..., of_row[:, None], of_column[None]]
    return numbers, torch.from_numpy(scales), products


def write_twins(
    model: Path, root: Path, pack: Packer, settings: dict[str, Any], *, ends: tuple[str, ...] = ("_proj.weight",)
) -> tuple[Path, Path]:
    """Write `model`, one file, with the matrices whose names end like `ends` packed, and its twin of numbers."""
    packed, twin = root / "packed", root / "twin"
    shutil.copytree(model, packed)
    shutil.copytree(model, twin)
    stored, plain = {}, {}
    for name, tensor in load_file(model / "model.safetensors").items():
        if not name.endswith(ends):
            stored[name] = plain[name] = tensor
            continue
        parts, numbers = pack(name, tuple(tensor.shape))
        stored.update({name.removesuffix("weight") + part: value for part, value in parts.items()})
        plain[name] = torch.from_numpy(numbers)
    save_file(stored, packed / "model.safetensors", {"format": "pt"})
    save_file(plain, twin / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return packed, twin


def seed_of(name: str) -> int:
    """A number for each name of a tensor."""
    return sum(place * ord(letter) for place, letter in enumerate(name, 1))
