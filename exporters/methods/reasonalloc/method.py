"""ReasonAlloc: budgets of the cache by the attention that each layer needs, measured once for each model.

Source: arXiv 2606.11164, section 5.2. How counts become a layer's demand is not stated there; the mean over prompts, query heads
and positions is ours.
"""

from __future__ import annotations

from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.methods.reasonalloc.curve_command import TUNER

METHOD: Method[object] = Method(
    name="reasonalloc",
    summary="budgets of the cache by the attention that each layer needs",
    paper="2606.11164",
    tuners=(TUNER,),
)
