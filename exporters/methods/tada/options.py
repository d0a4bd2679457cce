"""The settings of a merge: each scheme and each gate has options of its own, and takes no other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from enginewright.runtime.errors import ExportError

MergeName = Literal["tada", "linear", "svd", "ties", "dare-ties", "knots-ties"]
GateName = Literal["sigmoid", "ratio", "ramp", "const"]
MeanName = Literal["mean", "rms"]
SCHEMES: dict[str, dict[str, float]] = {
    "tada": {"theta": 0.2, "scale": 1.0},
    "linear": {"scale": 0.5},
    "svd": {"scale": 0.5},
    "ties": {"density": 0.2, "scale": 1.0},
    "dare-ties": {"drop": 0.8, "scale": 0.4},
    "knots-ties": {"density": 0.2, "scale": 0.5},
}
"""The numbers that each scheme takes, with their defaults."""
GATES: dict[str, dict[str, float]] = {
    "sigmoid": {"kappa": 1.0, "shift": 0.0},
    "ratio": {},
    "ramp": {},
    "const": {"share": 0.5},
}
"""The numbers that each gate takes, with their defaults."""
PROBED = ("sigmoid", "ratio")
"""The gates that depend on the probe."""
_NUMBERS = ("theta", "scale", "density", "drop", "kappa", "shift", "share")
_RANGES = {
    "theta": (0.0, 2.0),
    "scale": (-1e6, 1e6),
    "density": (1e-6, 1.0),
    "drop": (0.0, 0.999999),
    "kappa": (-1e6, 1e6),
    "shift": (-1e6, 1e6),
    "share": (0.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """The settings of one merge; the command `tune tada` creates it.

    None stands for the default of the scheme or the gate; a number that neither takes is refused.

    merge: the scheme.
    gate: how each layer's share is chosen, by the scheme tada; None: sigmoid.
    mean: of the probe over tokens, by the scheme tada; None: mean.
    theta: a pair of components conflicts where their cosines' product is below -theta; from 1 on none does.
    scale: on the merged change.
    density: the share of entries, the largest ones, that TIES keeps.
    drop: the share of entries that DARE drops by chance.
    kappa, shift: the slope and the offset of the sigmoid.
    share: the domain's share in every layer, of the gate const.
    samples: the number of texts for the probe.
    length: of a text, in tokens, at most; None: 512, or the model's context if that is shorter.
    seed: of the choice of texts, and of DARE's.

    Raises:
        ExportError: a value is not known, out of range, or not taken by the scheme or the gate.
    """

    merge: MergeName = "tada"
    gate: GateName | None = None
    mean: MeanName | None = None
    theta: float | None = None
    scale: float | None = None
    density: float | None = None
    drop: float | None = None
    kappa: float | None = None
    shift: float | None = None
    share: float | None = None
    samples: int = 32
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("merge", MergeName), ("gate", GateName), ("mean", MeanName)):
            value = getattr(self, name)
            if value not in get_args(kind) and (value is not None or name == "merge"):
                raise ExportError(f"--{name}: got {value!r}, expected one of {', '.join(get_args(kind))}")
        for name in ("gate", "mean"):
            if getattr(self, name) is not None and self.merge != "tada":
                raise ExportError(
                    f"--{name}: got {getattr(self, name)}, which --merge {self.merge} does not use; leave it out"
                )
        for name in _NUMBERS:
            if (value := getattr(self, name)) is not None:
                self._check_number(name, value)
        for name, least in (("samples", 1), ("length", 1), ("seed", 0)):
            if (count := getattr(self, name)) is not None and count < least:
                raise ExportError(f"--{name}: got {count}, expected {least} or more")

    def _check_number(self, name: str, value: float) -> None:
        low, high = _RANGES[name]
        if name not in self._taken:
            by = f"--merge {self.merge}" + (f" with --gate {self.gate_name}" if self.merge == "tada" else "")
            raise ExportError(f"--{name}: got {value}, which {by} does not use; leave it out")
        if not low <= value <= high:
            raise ExportError(f"--{name}: got {value}, expected {low:g} to {high:g}")

    @property
    def gate_name(self) -> GateName:
        """The gate, by default sigmoid."""
        return self.gate or "sigmoid"

    @property
    def mean_name(self) -> MeanName:
        """The mean of the probe, by default mean."""
        return self.mean or "mean"

    @property
    def _taken(self) -> dict[str, float]:
        return {**SCHEMES[self.merge], **(GATES[self.gate_name] if self.merge == "tada" else {})}

    @property
    def is_probed(self) -> bool:
        """Whether the result depends on the probe."""
        return self.merge == "tada" and self.gate_name in PROBED

    def number(self, name: str) -> float:
        """The value of a number that the scheme or the gate takes, given or by default."""
        given: float | None = getattr(self, name)
        return self._taken[name] if given is None else given

    def describe(self) -> dict[str, float | str]:
        """The scheme, and all that it uses, by name."""
        named: dict[str, float | str] = {"merge": self.merge}
        if self.merge == "tada":
            named |= {"gate": self.gate_name, "mean": self.mean_name}
        return {**named, **{name: self.number(name) for name in self._taken}}
