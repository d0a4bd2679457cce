"""compressed-tensors: checkpoints of LLM Compressor and others, whose config.json says how groups of modules are quantised.

Source: github.com/vllm-project/compressed-tensors, 0.20.
"""

from enginewright.exporters.source.formats.compressed_tensors.compressed_folder import METHOD, CompressedFolder
from enginewright.exporters.source.quantized.quantized_folder import is_quantised_with
from enginewright.exporters.source.tensor_source import SourceFormat

SOURCE = SourceFormat(
    name=METHOD,
    expects=f"a directory of safetensors files whose config.json has quantization_config with quant_method {METHOD}",
    recognise=lambda path: is_quantised_with(path, METHOD),
    open=CompressedFolder,
    instead_of="safetensors",
    hub_files=("*.safetensors",),
)
