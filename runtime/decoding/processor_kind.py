"""The kinds of logits processors, found in `processors/`, and the processors that a request's Sampling asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.artifact.extension import Door
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.logits_processor import Ints, LogitsProcessor
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling
from enginewright.runtime.requests.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class ProcessorKind:
    """A kind of logits processor; a module in `processors/` creates it as its PROCESSOR.

    name: as `Sampling.logits_processors` has it.
    order: kinds with lower numbers act first. The bundled ones have numbers, in the order in which transformers acts;
        without a number, a kind acts after them, in the order of the request's `logits_processors`.
    from_sampling: called as from_sampling(sampling, prompt[n] int64); returns the processor that the fields of Sampling ask
        for, or None. Without it, only `logits_processors` asks for this kind.
    from_options: called as from_options(options, prompt[n] int64, vocab) with what `logits_processors` has for the name; it
        raises RequestError for options that it does not know. Without it, the kind takes no options.
    """

    name: str
    order: int | None = None
    from_sampling: Callable[[ResolvedSampling, Ints], LogitsProcessor | None] | None = None
    from_options: Callable[[Mapping[str, Any], Ints, int], LogitsProcessor] | None = None


PROCESSORS = Door("enginewright.runtime.decoding.processors", "PROCESSOR", ProcessorKind)


def open_processors(sampling: ResolvedSampling, prompt: Ints, vocab: int) -> tuple[LogitsProcessor, ...]:
    """Return the processors of a request with this prompt[n] int64, in the order in which they act.

    Raises:
        RequestError: `logits_processors` has a name that is not installed, or options that it does not take.
    """
    if not sampling.changes_logits:
        return ()
    kinds = PROCESSORS.entries()
    opened: list[tuple[float, LogitsProcessor]] = []
    for kind in kinds.values():
        processor = None if kind.from_sampling is None else kind.from_sampling(sampling, prompt)
        if processor is not None:
            opened.append((_place(kind), processor))
    for name, given in sampling.logits_processors.items():
        if callable(given):
            opened.append((math.inf, given(prompt, vocab)))
        elif name in kinds and (open_named := kinds[name].from_options) is not None:
            opened.append((_place(kinds[name]), open_named(given, prompt, vocab)))
        else:
            raise _unknown(name, kinds)
    return tuple(processor for _, processor in sorted(opened, key=lambda pair: pair[0]))


def check_switched_off(sampling: Sampling) -> None:
    """Raise RequestError if `logits_processors` has None, which switches one off, for a name that is not installed."""
    for name, given in sampling.logits_processors.items():
        if given is None and name not in (kinds := PROCESSORS.entries()):
            raise _unknown(name, kinds)


def _unknown(name: str, kinds: Mapping[str, ProcessorKind]) -> RequestError:
    known = ", ".join(sorted(each.name for each in kinds.values() if each.from_options is not None)) or "none"
    return RequestError(
        f"Sampling.logits_processors: got {name!r}, expected one that is installed ({known}), or a function that makes a processor"
    )


def _place(kind: ProcessorKind) -> float:
    return math.inf if kind.order is None else kind.order
