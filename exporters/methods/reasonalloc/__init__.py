"""ReasonAlloc: a curve of how many tokens each layer of a model attends to, by which budgets of the cache are shared out."""

from enginewright.exporters.methods.reasonalloc.curve import DemandCurve, read_curve
from enginewright.exporters.methods.reasonalloc.method import METHOD

__all__ = ["METHOD", "DemandCurve", "read_curve"]
