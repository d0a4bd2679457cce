"""The probe: how strongly an adapter acts on what a layer reads, as a share of what its norm allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from enginewright.exporters.calibration.fast_linear import multiply
from enginewright.exporters.calibration.observe import observe
from enginewright.exporters.methods.tada.components import Doubles, Factors, read_pair
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError

Mean = Literal["mean", "rms"]


@dataclass(frozen=True, kw_only=True)
class ProbeSums:
    """Sums over the tokens whose input h is not 0; `add_tokens` makes them.

    tokens: how many there are.
    shares: the sum of |B A h| / (|B A| |h|), of each adapter.
    squares: the sum of |B A h|^2 / |B A|^2, of each adapter.
    inputs: the sum of |h|^2.
    """

    tokens: int = 0
    shares: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()
    inputs: float = 0.0

    def results(self, mean: Mean) -> tuple[float, ...]:
        """The probe of each adapter, 0 to 1; 0 where no token counts.

        mean: of |B A h| / |h|, or the root of the mean square of B A h over that of h.
        """
        if mean == "rms":
            return tuple(float(np.sqrt(each / self.inputs)) if self.inputs else 0.0 for each in self.squares)
        return tuple(each / self.tokens if self.tokens else 0.0 for each in self.shares)


def probe(b: ArrayLike, a: ArrayLike, inputs: ArrayLike, *, mean: Mean = "mean") -> float:
    """Return the mean over tokens of |B A h| / (|B A| |h|), with the Frobenius norm of B A.

    It does not depend on the size of B A, nor on how that is split into factors: the inputs are the model's without
    adapters. Isotropic inputs give about 1 / sqrt(n). It is 0 for an adapter that is 0, and where every token's h is 0.

    b: [o, r].
    a: [r, n].
    inputs: [tokens, n], or [..., n], the layer's inputs h without padding. Products are of their type, float32 or float64.
    mean: `rms` takes the root of the mean of squares instead, sqrt(tr(B A C A' B') / (|B A|^2 tr C)) with C = sum of h h'.

    Raises:
        ExportError: shapes do not fit, or B or A is not finite.
    """
    found = np.asarray(inputs)
    columns = np.shape(a)[-1] if np.ndim(a) else 0
    if found.ndim < 1 or found.shape[-1] != columns:
        raise ExportError(f"probe: got inputs {list(found.shape)}, expected [tokens, {columns}] as A has columns")
    tokens = torch.from_numpy(np.array(found, found.dtype if found.dtype in (np.float32, np.float64) else np.float64))
    core = torch.from_numpy(unit_core((b, a))).to(tokens.dtype)
    return add_tokens(ProbeSums(), (core,), tokens).results(mean)[0]


def unit_core(factors: Factors) -> Doubles:
    """Return R A / |B A|, float64 [r, n], with B = Q R: its norms are those of B A, and its own norm is 1; 0 for 0."""
    b, a = read_pair(factors, "probe")
    core = np.linalg.qr(b, mode="r") @ a
    norm = float(np.linalg.norm(core))
    return np.asarray(core / norm if norm else core)


def add_tokens(sums: ProbeSums, cores: Sequence[torch.Tensor], inputs: torch.Tensor) -> ProbeSums:
    """Return the sums with the tokens of inputs [..., n] added.

    cores: `unit_core` of each adapter, of the type of the inputs.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    counts = norms > 0
    own = [torch.linalg.vector_norm(multiply(rows, core), dim=1, dtype=torch.float64)[counts] for core in cores]
    before = sums.shares or (0.0,) * len(own), sums.squares or (0.0,) * len(own)
    return ProbeSums(
        tokens=sums.tokens + int(counts.sum()),
        shares=tuple(x + float((each / norms[counts]).sum()) for x, each in zip(before[0], own, strict=True)),
        squares=tuple(x + float(each.square().sum()) for x, each in zip(before[1], own, strict=True)),
        inputs=sums.inputs + float(norms.square().sum()),
    )


def probe_layers(
    checkpoint: Checkpoint,
    weights: Mapping[str, Weight],
    texts: Sequence[NDArray[np.int64]],
    pairs: Mapping[str, Callable[[], tuple[Factors, Factors]]],
) -> dict[str, ProbeSums]:
    """Return the sums of each layer over the texts, by its name in the model; the model runs without adapters.

    In memory are one block, the hidden states of the texts, and the factors of that block's layers.

    texts: token ids of each, int64 [length].
    pairs: loads the factors of task and domain, by the layer's name.

    Raises:
        ExportError: there are no texts, a hidden state is not finite, or a layer is none that the blocks call.
        UnsupportedError: the model's blocks cannot be run one by one.
    """
    sums = {module: ProbeSums() for module in pairs}
    cores: dict[str, tuple[torch.Tensor, ...]] = {}

    def record(parameter: str, _: int, x: torch.Tensor) -> None:
        module = parameter.removesuffix(".weight")
        if module not in cores:
            if sums[module].tokens == 0 and cores and _block(module) != _block(next(iter(cores))):
                cores.clear()
            cores[module] = tuple(torch.from_numpy(unit_core(each)).float() for each in pairs[module]())
        sums[module] = add_tokens(sums[module], cores[module], x)

    batches = [torch.from_numpy(text)[None] for text in texts]
    observe(checkpoint, weights, batches, record, wanted=lambda name: name.removesuffix(".weight") in pairs)
    return sums


def _block(module: str) -> str:
    """The part of a layer's name that names its block."""
    return ".".join(module.split(".")[: next((i for i, x in enumerate(module.split(".")) if x.isdigit()), 0) + 1])
