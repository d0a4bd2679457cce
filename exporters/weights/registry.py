"""The registry of stored forms, and the choice of one of them for an engine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginewright.exporters.config_text import make_config
from enginewright.exporters.weights.stored_form import StoredForm
from enginewright.runtime.artifact.extension import Door
from enginewright.runtime.errors import ExportError

FORMS: Door[StoredForm[Any]] = Door("enginewright.exporters.weights.forms", "FORM", StoredForm)
DEFAULT = "float32"


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

    @property
    def keeps_stored(self) -> bool:
        """Whether codes that a checkpoint stores are kept."""
        return self.form.keeps_stored(self.options)

    def describe(self, dtype: str) -> dict[str, Any]:
        """The manifest's record of a graph that computes in `dtype`."""
        record = self.form.describe(self.kind, self.options, dtype)
        return record if self.form.max_kl is None else {**record, "max_kl": self.form.max_kl}


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
