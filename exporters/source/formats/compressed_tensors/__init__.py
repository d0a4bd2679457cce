"""compressed-tensors: checkpoints of LLM Compressor and others, whose config.json says how groups of modules are quantised.

Source: github.com/vllm-project/compressed-tensors, 0.20.
"""

from enginewright.exporters.source.formats.compressed_tensors.compressed_folder import METHOD, CompressedFolder
from enginewright.exporters.source.quantized.quantized_folder import is_quantised_with, quantized_format

SOURCE = quantized_format(METHOD, CompressedFolder, lambda path: is_quantised_with(path, METHOD))
