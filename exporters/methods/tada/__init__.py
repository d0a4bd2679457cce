"""TaDA-R: merges a task's and a domain's adapter by gates per layer and projection, without training."""

from enginewright.exporters.methods.tada.combining import merge
from enginewright.exporters.methods.tada.layer_gates import gates
from enginewright.exporters.methods.tada.method import METHOD
from enginewright.exporters.methods.tada.probing import probe

__all__ = ["METHOD", "gates", "merge", "probe"]
