"""The kinds of logits processors, found in `processors/`, and the processors that a request's Sampling asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.artifact.extension import Door
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.logits_processor import Ints, LogitsProcessor
from enginewright.runtime.requests.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class ProcessorKind:
    """A kind of logits processor; a module in `processors/` creates it as its PROCESSOR.

    name: as `Sampling.logits_processors` has it.
    order: of the kinds that read fields of Sampling, lower ones act first.
    from_sampling: called as from_sampling(sampling, prompt[n] int64); returns the processor that the fields of Sampling ask
        for, or None. Without it, only `logits_processors` asks for this kind.
    from_options: called as from_options(options, prompt[n] int64, vocab) with what `logits_processors` has for the name; it
        raises RequestError for options that it does not know. Without it, the kind takes no options.
    """

    name: str
    order: int = 0
    from_sampling: Callable[[Sampling, Ints], LogitsProcessor | None] | None = None
    from_options: Callable[[Mapping[str, Any], Ints, int], LogitsProcessor] | None = None


PROCESSORS = Door("enginewright.runtime.decoding.processors", "PROCESSOR", ProcessorKind)


def open_processors(sampling: Sampling, prompt: Ints, vocab: int) -> tuple[LogitsProcessor, ...]:
    """Return the processors of a request with this prompt[n] int64, in the order in which they act.

    Raises:
        RequestError: `logits_processors` has a name that is not installed, or options that it does not take.
    """
    if not sampling.changes_logits:
        return ()
    kinds = sorted(PROCESSORS.entries().values(), key=lambda kind: (kind.order, kind.name))
    found = [kind.from_sampling(sampling, prompt) for kind in kinds if kind.from_sampling is not None]
    opened = [processor for processor in found if processor is not None]
    named = {kind.name: kind.from_options for kind in kinds if kind.from_options is not None}
    for name, given in sampling.logits_processors.items():
        if callable(given):
            opened.append(given(prompt, vocab))
        elif name in named:
            opened.append(named[name](given, prompt, vocab))
        else:
            known = ", ".join(sorted(named)) or "none"
            raise RequestError(
                f"Sampling.logits_processors: got {name!r}, expected one that is installed ({known}), or a function that "
                "makes a processor"
            )
    return tuple(opened)
