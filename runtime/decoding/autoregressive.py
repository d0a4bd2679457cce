"""Plain decoding: one token for each request in a step."""

from __future__ import annotations

from collections.abc import Sequence

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.decoding.decoder import Emission
from enginewright.runtime.decoding.sampler import choose_tokens
from enginewright.runtime.requests.request import Generation


class Autoregressive:
    """Decides one token for each request in a step, by the request's own Sampling; created by `open_decoder`."""

    width = 1

    def decode(self, outputs: Outputs, requests: Sequence[Generation], drafts: Sequence[list[int]]) -> Emission:
        """Return one token for each request; `drafts` is empty."""
        return Emission(*choose_tokens(outputs, requests))
