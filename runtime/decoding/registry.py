"""Finds the decoding kind that a manifest names, and checks that the engine has what the kind reads."""

from __future__ import annotations

from enginewright.runtime.artifact.extension import Door
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.decoding.kind import DecodingKind
from enginewright.runtime.errors import ArtifactError

DECODING_KINDS = Door("enginewright.runtime.decoding.kinds", "KIND", DecodingKind)


def find_kind(manifest: Manifest) -> DecodingKind:
    """Return the kind that the manifest's `decoding` names.

    Raises:
        ArtifactError: this version does not know the kind, the decoder graph lacks an output that it reads or an input that
            it fills, or `k` is not its width.
    """
    name, kinds = str(manifest.decoding.get("kind")), DECODING_KINDS.entries()
    if name not in kinds:
        known = ", ".join(sorted(kinds))
        raise ArtifactError(
            f"manifest.json: decoding.kind: got {name!r}, expected one of {known}; name the folder that "
            "has it by --extensions or extend, or upgrade enginewright"
        )
    kind = kinds[name]
    has = {spec.name for spec in manifest.graphs["decoder"].outputs if spec.alias is None}
    if missing := [output for output in kind.outputs if output not in has]:
        raise ArtifactError(
            f"manifest.json: decoding.kind {name!r} reads the outputs {', '.join(missing)}, and the decoder graph has "
            f"{', '.join(sorted(has))}; build the engine again"
        )
    if set(kind.inputs) != set(manifest.token_inputs):
        filled, has_inputs = ", ".join(kind.inputs) or "none", ", ".join(manifest.token_inputs) or "none"
        raise ArtifactError(
            f"manifest.json: decoding.kind {name!r} fills the inputs {filled}, and the decoder graph has {has_inputs} for "
            "decoding kinds; build the engine again"
        )
    if (width := kind.width(manifest.decoding)) != (stated := manifest.decoding.get("k", 1)):
        raise ArtifactError(
            f"manifest.json: decoding.k: got {stated!r}, expected {width}, the most tokens that a row of kind {name!r} brings into "
            "a step, because builders go by it; let the method that chooses the decoding write it, and build the engine again"
        )
    return kind
