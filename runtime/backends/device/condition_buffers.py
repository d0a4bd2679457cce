"""The tensors of conditions on a device: writes one entry at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import added_inputs
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.conditions import entry_values
from enginewright.runtime.backends.device.memory import DeviceBuffer, DeviceMemory


class ConditionBuffers:
    """Writes entries of conditions to buffers on a device, through pinned memory; created by a session.

    buffers: of the graph's inputs, by name.
    """

    def __init__(self, memory: DeviceMemory, manifest: Manifest, buffers: Mapping[str, DeviceBuffer]) -> None:
        self._memory = memory
        self._manifest = manifest
        tensors = [port.name for port in added_inputs(manifest) if port.lives == "condition"]
        self._buffers = {name: buffers[name] for name in tensors}
        sizes = [buffer.nbytes // buffer.shape[0] for buffer in self._buffers.values()]
        self._staged = memory.pinned((max(sizes),), np.uint8) if sizes else np.zeros(0, np.uint8)

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Write an entry of a condition's tensor, and wait until it is there."""
        array = entry_values(self._manifest, port, entry, values)
        staged = self._staged[: array.nbytes]
        staged[...] = array.reshape(-1).view(np.uint8)
        buffer = self._buffers[port]
        place = DeviceBuffer(buffer.address + entry * array.nbytes, buffer.shape[1:], buffer.dtype)
        self._memory.upload(place, staged)
        self._memory.synchronize()
