"""Second moments of what every linear layer reads, gathered block by block behind a prefix that is already quantised."""

from enginewright.exporters.calibration.calibrate import calibrate
from enginewright.exporters.calibration.linear_group import Calibration, LinearGroup, Quantize

__all__ = ["Calibration", "LinearGroup", "Quantize", "calibrate"]
