"""The decoders by the name of their kind in the manifest."""

from __future__ import annotations

from collections.abc import Callable

from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.decoding.autoregressive import Autoregressive
from enginewright.runtime.decoding.decoder import Decoder
from enginewright.runtime.decoding.multi_token import open_multi_token
from enginewright.runtime.errors import ArtifactError

DECODERS: dict[str, Callable[[Manifest], Decoder]] = {
    "autoregressive": lambda _: Autoregressive(),
    "multi_token": open_multi_token,
}


def open_decoder(manifest: Manifest) -> Decoder:
    """Return the decoder for the kind that the manifest names.

    Raises:
        ArtifactError: this version does not know the kind, or cannot use its settings.
    """
    kind = manifest.decoding.get("kind")
    if kind not in DECODERS:
        known = ", ".join(DECODERS)
        raise ArtifactError(
            f"manifest.json: decoding.kind: got {kind!r}, expected one of {known}; upgrade enginewright"
        )
    return DECODERS[kind](manifest)
