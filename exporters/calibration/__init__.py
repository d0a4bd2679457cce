"""Calibration: runs text through a model block by block, and quantises each linear layer on the inputs that it reads there.

The inputs come from the model whose earlier layers are already quantised, unless the objective asks for the float model. A
quantiser sees only their second moments.
"""

from enginewright.exporters.calibration.calibrate import CalibrationJob, QuantizedForm, calibrate
from enginewright.exporters.calibration.linear_group import Calibration, LinearGroup, Quantize

__all__ = ["Calibration", "CalibrationJob", "LinearGroup", "Quantize", "QuantizedForm", "calibrate"]
