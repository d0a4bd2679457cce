"""TaDA-R, our reconstruction of TaDA: one adapter out of two, which `--apply lora` merges into a model.

Source: arXiv 2606.05016, of whose body nothing was read: the gate's function, the calibration and the test of conflicts are
our own, so results carry the name TaDA-R.
"""

from __future__ import annotations

from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.methods.tada.tune_command import TUNERS

METHOD: Method[object] = Method(
    name="tada",
    summary="one adapter of a task's and a domain's, by gates per layer",
    paper="2606.05016",
    tuners=TUNERS,
)
