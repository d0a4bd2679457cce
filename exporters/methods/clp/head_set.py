"""A trained set of extra heads with its length classifier, on disk: `tune clp` writes it, and the method clp reads it.

clp_config.json          HeadSet: sizes, and the backbone that the heads were trained on
clp_heads.safetensors    heads.<j>.up.weight [h, d], .up.bias [h], .out.weight [V, h], .out.bias [V], j from 0;
                         classifier.weight [classes, d], classifier.bias [classes]; all float32
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from enginewright.exporters.calibration.atomic_files import replace_file
from enginewright.exporters.source.json_file import read_json
from enginewright.runtime.artifact.strict_json import parse
from enginewright.runtime.errors import ExportError

CONFIG, WEIGHTS = "clp_config.json", "clp_heads.safetensors"
FORMAT = 1
MOST_TOKENS = 16
"""The longest emission that the op takes."""


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """Sizes of a set of heads; `tune` and `medusa.convert` create it.

    hidden_size: d, of the backbone's states.
    vocab_size: V, of the backbone.
    k: tokens of one emission, of which the backbone gives the first.
    head_hidden: h, of a head's hidden layer.
    classes: of the classifier, for 0 .. classes - 1 extra tokens. k classes suffice; the paper's own counts of parameters
        have k + 1.
    """

    hidden_size: int
    vocab_size: int
    k: int
    head_hidden: int
    classes: int

    @property
    def extra(self) -> int:
        """Number of heads."""
        return self.k - 1

    @property
    def head_parameters(self) -> int:
        """Parameters of one head."""
        return (self.hidden_size + 1) * self.head_hidden + (self.head_hidden + 1) * self.vocab_size

    @property
    def classifier_parameters(self) -> int:
        """Parameters of the classifier."""
        return self.classes * (self.hidden_size + 1)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the set, by name."""
        sizes: dict[str, tuple[int, ...]] = {}
        for j in range(self.extra):
            sizes[f"heads.{j}.up.weight"] = (self.head_hidden, self.hidden_size)
            sizes[f"heads.{j}.up.bias"] = (self.head_hidden,)
            sizes[f"heads.{j}.out.weight"] = (self.vocab_size, self.head_hidden)
            sizes[f"heads.{j}.out.bias"] = (self.vocab_size,)
        sizes["classifier.weight"] = (self.classes, self.hidden_size)
        sizes["classifier.bias"] = (self.classes,)
        return sizes


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The model that heads were trained on; `tune` and `medusa.convert` create it.

    name: of the checkpoint.
    sha256: `hash_of` the checkpoint.
    """

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class HeadSet:
    """The config of a set of heads; `tune` and `medusa.convert` create it.

    format: version of the files.
    kind: of the set.
    shape: sizes of its tensors.
    activation: of a head's hidden layer.
    residual: whether the hidden layer adds its input to its output.
    backbone: the model that the heads are for.
    training: how the set was made.
    """

    format: int = FORMAT
    kind: Literal["clp"] = "clp"
    shape: HeadShape
    activation: Literal["gelu", "silu"] = "gelu"
    residual: bool = False
    backbone: Backbone
    training: dict[str, Any] = field(default_factory=dict)


def write_head_set(root: Path, heads: HeadSet, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write tensors and config to `root`. The config comes last, so that a set with a config is whole."""
    assert {name: x.shape for name, x in tensors.items()} == heads.shape.tensors()
    root.mkdir(parents=True, exist_ok=True)
    replace_file(root / WEIGHTS, save({name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}))
    partial = root / f".{CONFIG}.partial"
    partial.write_text(json.dumps(dataclasses.asdict(heads), indent=2) + "\n")
    partial.replace(root / CONFIG)


def read_head_set(root: Path) -> HeadSet:
    """Return the config of the set at `root`, after checking the tensors' names and shapes.

    Raises:
        ExportError: a file is missing or damaged, or config and tensors disagree.
    """
    path = root / CONFIG
    if not path.is_file():
        raise ExportError(f"{root}: got no {CONFIG}, expected a set of heads; `enginewright tune clp` writes one")
    raw = read_json(path)
    if raw.get("format") != FORMAT:
        raise ExportError(f"{path}: got format {raw.get('format')!r}, expected {FORMAT}; train the heads again")
    try:
        heads = parse(HeadSet, raw, str(path))
    except ValueError as e:
        raise ExportError(f"{e}; train the heads again") from e
    shape = heads.shape
    if not 2 <= shape.k <= MOST_TOKENS or min(shape.hidden_size, shape.vocab_size, shape.head_hidden) < 1:
        raise ExportError(f"{path}: got k {shape.k} and sizes {shape}, expected k from 2 to {MOST_TOKENS}")
    if shape.classes < 1 or (heads.residual and shape.head_hidden != shape.hidden_size):
        raise ExportError(f"{path}: got {shape}, expected a class at least, and residual heads as wide as the model")
    found = _shapes(root / WEIGHTS)
    for name, size in shape.tensors().items():
        if found.get(name) != size:
            got = f"shape {list(found[name])}" if name in found else "no such tensor"
            raise ExportError(f"{root / WEIGHTS}: {name}: got {got}, expected {list(size)} as {CONFIG} says")
    return heads


def load_tensor(root: Path, name: str) -> NDArray[np.float32]:
    """Return the tensor `name` of the set at `root`; ExportError when it holds NaN or infinity."""
    with safe_open(root / WEIGHTS, framework="np") as f:
        tensor: NDArray[np.float32] = f.get_tensor(name).astype(np.float32)
    if not np.isfinite(tensor).all():
        raise ExportError(f"{root / WEIGHTS}: tensor {name!r} holds NaN or infinity; train the heads again")
    return tensor


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if not path.is_file():
        raise ExportError(f"{path}: not found; the set of heads is incomplete, train it again")
    try:
        with safe_open(path, framework="np") as f:
            return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as e:
        raise ExportError(f"{path}: not a whole safetensors file ({e}); train the heads again") from e
