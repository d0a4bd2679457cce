"""ModelOpt's unified checkpoints, and those that `export-checkpoint --format modelopt` writes.

Source: github.com/NVIDIA/TensorRT-Model-Optimizer, modelopt/torch/export/quant_utils.py.
"""

from enginewright.exporters.source.formats.modelopt.algorithm import recognise
from enginewright.exporters.source.formats.modelopt.unified_folder import UnifiedFolder
from enginewright.exporters.source.quantized.quantized_folder import quantized_format

SOURCE = quantized_format(
    "modelopt",
    UnifiedFolder,
    recognise,
    expects="with hf_quant_config.json, or whose config.json has quant_method modelopt",
)
