"""The verdicts of a sweep, and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

from benchmarks.families.small_configs import whole_types

Kind: TypeAlias = Literal["right", "wrong", "refused"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of one variant of an engine.

    kind: right: within the variant's tolerance of its reference; wrong; refused: not built, for the reason in `told`.
    value: the figure that was compared with the tolerance; None where nothing was compared.
    told: the reason of a refusal, or the figures that are beyond the tolerance.
    """

    kind: Kind
    value: float | None = None
    told: str = ""


@dataclass(frozen=True, kw_only=True)
class TypeResult:
    """The outcome of one model type; `compare_type.try_type` creates it.

    model_type: as in config.json.
    commit: of the checkout that made it; the sweep fills it in.
    refusal: the reason why the type is refused; empty where an engine was built.
    failure: an error that is no refusal.
    traits: of its small model, in words.
    variants: the verdict of each variant by name.
    """

    model_type: str
    commit: str = ""
    refusal: str = ""
    failure: str = ""
    traits: tuple[str, ...] = ()
    variants: Mapping[str, Verdict] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """The verdict on the type: wrong where any of its variants is."""
        if self.failure or any(verdict.kind == "wrong" for verdict in self.variants.values()):
            return "wrong"
        return "refused" if self.refusal else "right"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The outcomes of all model types so far; `read_sweep` creates it, and the command adds to it.

    versions: of the libraries that define what is right.
    results: by model type.
    text_parts: of multimodal types, by type.
    """

    versions: dict[str, str]
    results: dict[str, TypeResult]
    text_parts: dict[str, TypeResult] = field(default_factory=dict)

    def of(self, model_type: str) -> dict[str, TypeResult]:
        """The results that one of the type is, or would be, among."""
        return self.text_parts if model_type in whole_types() else self.results

    def write(self, file: Path) -> None:
        """Write the file, complete or not at all."""
        results, parts = ([asdict(found[name]) for name in sorted(found)] for found in (self.results, self.text_parts))
        content = {"versions": self.versions, "results": results, "text_parts": parts}
        staged = file.with_name(file.name + ".part")
        staged.write_text(json.dumps(content, indent=1) + "\n")
        staged.replace(file)


def installed_versions() -> dict[str, str]:
    """The versions here of the libraries that define what is right."""
    return {name: metadata.version(name).partition("+")[0] for name in ("transformers", "torch")}


def read_sweep(file: Path) -> Sweep:
    """The results of earlier runs; none where the file does not exist, or is of other versions."""
    versions = installed_versions()
    found = json.loads(file.read_text()) if file.is_file() else {}
    if found.get("versions") != versions:
        return Sweep(versions=versions, results={})
    results, parts = (
        {each["model_type"]: _from_json(each) for each in found.get(name, ())} for name in ("results", "text_parts")
    )
    return Sweep(versions=versions, results=results, text_parts=parts)


def _from_json(found: dict[str, Any]) -> TypeResult:
    variants = {name: Verdict(**verdict) for name, verdict in found.pop("variants").items()}
    return TypeResult(**{**found, "traits": tuple(found["traits"]), "variants": variants})
