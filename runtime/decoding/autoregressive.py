"""Plain decoding: one token per request and step."""

from __future__ import annotations

from collections.abc import Sequence

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.decoding.decoder import Emission
from enginewright.runtime.decoding.sampler import choose
from enginewright.runtime.requests.request import Generation


class Autoregressive:
    """One token per row and step, chosen by the row's own Sampling."""

    width = 1

    def decode(self, outputs: Outputs, requests: Sequence[Generation], drafts: Sequence[list[int]]) -> Emission:
        """Return one token per request."""
        return Emission(*choose(outputs, requests))
