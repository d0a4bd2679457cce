"""NSRU: `enginewright tune nsru` trains an adapter, which `--apply lora` or `export-checkpoint` merges into the weights.

The method has no hooks: an engine without the undesired answers is an engine with a merged adapter, and nothing in the
graph or in the runtime differs.

Source: null-space constrained, response-specified unlearning, arXiv 2606.10989 v1.
"""

from __future__ import annotations

from typing import Any

from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.methods.nsru.unlearn_command import TUNER

METHOD: Method[Any] = Method(
    name="nsru",
    summary="an adapter that unlearns answers and leaves others as they are",
    paper="2606.10989",
    tuners=(TUNER,),
)
