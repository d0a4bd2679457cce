"""The model's own defaults of how tokens are chosen, which an engine keeps and a request may override."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from enginewright.runtime.artifact.sampling_ranges import expected_instead


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What the fields of `Sampling` are where a request gives none; None: the neutral value that `Sampling` names.

    temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, repetition_penalty: as in `Sampling`.
    max_tokens: the most new tokens, as far as they fit.
    max_length: the most tokens of prompt and output together, where there is no max_tokens.
    stop: stop strings.
    logits_processors: the name of a processor with its options.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    max_length: int | None = None
    stop: tuple[str, ...] = ()
    logits_processors: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is not None and (expected := expected_instead(each.name, value)) is not None:
                raise ValueError(f"{each.name}: got {value!r}, expected {expected}")
        if not all(self.stop):
            raise ValueError("stop: got an empty string, expected strings that are not empty")

    @property
    def given(self) -> dict[str, Any]:
        """The defaults that there are, by name."""
        return {
            each.name: value for each in dataclasses.fields(self) if (value := getattr(self, each.name)) not in _NONE
        }


_NONE: tuple[object, ...] = (None, (), {})
