"""The options of `enginewright tune nsru`, with the paper's defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from enginewright.runtime.errors import ExportError

Training = Literal["nsru", "lora", "gradient-ascent", "graddiff", "npo"]
Place = Literal["prompt-last", "query-last", "sequence-last", "mean", "all-tokens"]
Energy = Literal["capped", "total"]
PROJECTIONS = ("q", "k", "v", "o")
SMALL = 2048  # hidden size, below which a model gets smaller defaults than the paper's


@dataclass(frozen=True, kw_only=True)
class UnlearnOptions:
    """Settings of one unlearning; the command creates it.

    method: the losses, and whether adapters are projected.
        nsru: all three losses, projected.
        lora: the same losses, not projected.
        gradient-ascent: the undesired answers' loss alone, negative; not projected.
        graddiff: that, and the retained answers' loss; not projected.
        npo: NPO's bounded loss of the undesired answers, and the retained answers' loss; not projected.
    layers: the last so many blocks get adapters; None: 16, and at most half of the blocks in a small model.
    rank: of an adapter; None: 64, and 16 in a small model.
    modules: the projections of attention that get adapters, of q, k, v and o.
    energy: the share of the retained inputs' energy that the subspace holds.
    most: the bound of the subspace's dimension; None: 128, and at most a quarter of the layer's inputs in a small model.
    at: the position whose input is a sample: the prompt's last token, that of the user's text, the answer's; or the mean
        over all tokens of prompt and answer, or each of them.
    centre: whether the samples' mean is subtracted first.
    energy_of: whether the share is of the `most` largest singular values (capped) or of all (total).
    safe_weight, forget_weight, retain_weight: of the three losses.
    beta: NPO's temperature.
    forget_cap: an undesired answer whose loss is above this many nats a token is no longer pushed; None: no bound.
    steps: of training.
    batch: sequences in a step, half of them of the forget file.
    rate: AdamW's learning rate, after `warmup` steps of growth.
    warmup: in steps.
    length: tokens of a sequence at most; longer answers are cut.
    seed: of the adapters' first values and the order of the data.

    Raises:
        ExportError: a value that is not known or out of range.
    """

    method: Training = "nsru"
    layers: int | None = None
    rank: int | None = None
    modules: tuple[str, ...] = PROJECTIONS
    energy: float = 0.9
    most: int | None = None
    at: Place = "prompt-last"
    centre: bool = False
    energy_of: Energy = "capped"
    safe_weight: float = 1.0
    forget_weight: float = 1.0
    retain_weight: float = 0.5
    beta: float = 0.1
    forget_cap: float | None = None
    steps: int = 300
    batch: int = 32
    rate: float = 1e-4
    warmup: int = 10
    length: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("method", Training), ("at", Place), ("energy_of", Energy)):
            if (value := getattr(self, name)) not in get_args(known):
                raise _wrong(name, value, ", ".join(get_args(known)))
        if not self.modules or set(self.modules) - set(PROJECTIONS) or len(set(self.modules)) < len(self.modules):
            raise _wrong("modules", " ".join(self.modules), "some of q, k, v and o, each once")
        for name in ("layers", "rank", "most", "steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise _wrong(name, value, "1 or more")
        if self.batch < 2 or self.batch % 2:
            raise _wrong("batch", self.batch, "an even number, one half for each file")
        if self.length < 2:
            raise _wrong("length", self.length, "2 or more")
        if not 0 <= self.energy <= 1:
            raise _wrong("energy", self.energy, "0 to 1")
        for name in ("safe_weight", "forget_weight", "retain_weight", "warmup", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise _wrong(name, getattr(self, name), "0 or more")
        for name in ("rate", "beta", "forget_cap"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise _wrong(name, value, "more than 0")
        if not any(self.weights.values()):
            raise ExportError(f"--method {self.method}: got weights of 0 alone, expected a loss to train on")

    @property
    def is_projected(self) -> bool:
        """Whether adapters are kept out of the retained inputs' subspace."""
        return self.method == "nsru"

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each kind of answer in the method's loss: safe, undesired, retain."""
        safe = self.safe_weight if self.method in ("nsru", "lora") else 0.0
        retain = 0.0 if self.method == "gradient-ascent" else self.retain_weight
        return {"safe": safe, "undesired": self.forget_weight, "retain": retain}

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options."""
        return [field.name for field in fields(cls)]


def _wrong(name: str, value: Any, expected: str) -> ExportError:
    return ExportError(f"--{name.replace('_', '-')}: got {value}, expected {expected}")
