"""The registry of stored forms, and the choice of one of them for an engine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginewright.exporters.config_text import make_config
from enginewright.exporters.weights.stored_form import StoredForm
from enginewright.runtime.artifact.extension import Door
from enginewright.runtime.artifact.stored_codes import CODES
from enginewright.runtime.errors import ExportError

FORMS: Door[StoredForm[Any]] = Door("enginewright.exporters.weights.forms", "FORM", StoredForm)
DEFAULT = "stored"


def find_form(kind: str) -> StoredForm[Any]:
    """Return the form called `kind`; an ExportError about an unknown one lists the known ones."""
    known = FORMS.entries()
    if kind not in known:
        raise ExportError(f"weights: unknown kind {kind!r}; known: {', '.join(sorted(known))}")
    return known[kind]


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The stored form of an engine's weights; `parse_weights` creates it.

    kind: name of the form.
    options: an instance of the form's options.
    """

    kind: str
    options: Any

    @functools.cached_property
    def form(self) -> StoredForm[Any]:
        """The form itself."""
        return find_form(self.kind)

    def settled(self, *, has_codes: bool) -> Storage:
        """Return the form that stores the weights of a checkpoint.

        has_codes: whether it stores codes that are kept.
        """
        name = self.form.for_numbers
        if has_codes or not name:
            return self
        known = {field.name for field in dataclasses.fields(find_form(name).options)}
        given = {key: value for key, value in dataclasses.asdict(self.options).items() if key in known}
        return choose_storage(name, given)

    def for_backend(self, *, has_own_products: bool) -> Storage:
        """Return the form with its option `linear`, if it has one that is auto, settled.

        has_own_products: whether the backend multiplies by enginewright's own kernels.
        """
        if getattr(self.options, "linear", None) != "auto":
            return self
        is_faster = has_own_products and self.options.compute == "int8"  # onnxruntime's exact ones are, for one row
        linear = "enginewright" if is_faster else "onnxruntime"
        return Storage(kind=self.kind, options=dataclasses.replace(self.options, linear=linear))

    def describe(self, dtype: str, codes: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """The manifest's record of a graph that computes in `dtype`.

        codes: what became of the codes of the checkpoint, as `QuantizeWeightsPass.codes`.
        """
        record = self.form.describe(self.kind, self.options, dtype)
        bound = {} if self.form.max_kl is None else {"max_kl": self.form.max_kl}
        return {**record, **bound, **({CODES: list(codes)} if codes else {})}


def choose_storage(kind: str = DEFAULT, options: Mapping[str, Any] | None = None) -> Storage:
    """Return the form `kind` with options whose values are text, or already of the fields' types; others are the defaults.

    Raises:
        ExportError: an unknown kind or option, or a value that is not known.
    """
    return Storage(kind=kind, options=make_config(find_form(kind).options, dict(options or {}), "weights"))


def list_forms() -> str:
    """The forms with their options and defaults, as `--weights` takes them: "int4:block_size=32,..."; for help texts."""
    listed = []
    for name, form in sorted(FORMS.entries().items()):
        defaults = dataclasses.asdict(form.options())
        pairs = ",".join(f"{key}={str(value).lower()}" for key, value in defaults.items())
        listed.append(f"{name}:{pairs}" if pairs else name)
    return ", ".join(listed)
