"""What turns a step's logits into tokens: one class per decoding kind of the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact import Manifest
from enginewright.runtime.errors import ArtifactError
from enginewright.runtime.request import Generation
from enginewright.runtime.sampler import Logprobs, choose
from enginewright.runtime.session import Outputs


@dataclass(frozen=True, slots=True)
class Emission:
    """One step's decisions: tokens[r] is the next token of the r-th sampled request, logprobs[r] what it asked for."""

    tokens: NDArray[np.int64]
    logprobs: list[Logprobs | None]


class Decoder(Protocol):
    """Decides tokens; created once per engine from `manifest.decoding`."""

    def decode(self, outputs: Outputs, requests: Sequence[Generation]) -> Emission:
        """Return the next tokens of `requests`, one per row of `outputs`; may overwrite those."""
        ...


class Autoregressive:
    """One token per row and step, chosen by the row's own Sampling."""

    def decode(self, outputs: Outputs, requests: Sequence[Generation]) -> Emission:
        """Return one token per request."""
        return Emission(*choose(outputs, requests))


DECODERS: dict[str, Callable[[], Decoder]] = {"autoregressive": Autoregressive}


def open_decoder(manifest: Manifest) -> Decoder:
    """Return the decoder of the manifest's decoding kind.

    Raises:
        ArtifactError: this version does not know the kind.
    """
    kind = manifest.decoding.get("kind")
    if kind not in DECODERS:
        known = ", ".join(DECODERS)
        raise ArtifactError(
            f"manifest.json: decoding.kind: got {kind!r}, expected one of {known}; upgrade enginewright"
        )
    return DECODERS[kind]()
