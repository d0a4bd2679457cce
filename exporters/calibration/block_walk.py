"""Walks the calibration tokens through the model block by block.

Collects the moments of each layer's inputs, quantises the block, and feeds its outputs to the next one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm import tqdm

from enginewright.exporters.calibration.activation_file import ActivationFile
from enginewright.exporters.calibration.activation_stream import ActivationStream
from enginewright.exporters.calibration.block_calls import BlockCall, CallTable, record_calls
from enginewright.exporters.calibration.block_results import QuantizedLayer, open_block, save_block
from enginewright.exporters.calibration.block_schedule import BlockSchedule, make_schedule
from enginewright.exporters.calibration.blocks import Blocks, load_weight
from enginewright.exporters.calibration.linear_group import Calibration, LinearGroup, Quantize
from enginewright.exporters.calibration.moments import Moments
from enginewright.exporters.calibration.resume import ResumeState
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError, UnsupportedError

QUANTIZED, FLOAT = "quantized", "float"
STREAMS = {"self": (QUANTIZED,), "cross": (QUANTIZED, FLOAT), "float": (FLOAT,)}  # objective -> names
_SAMPLE_TOKENS = 8  # enough to find a block's schedule


@dataclass(kw_only=True)
class BlockWalk:
    """One walk over the blocks that are not done; `calibrate` creates it.

    blocks: of the model.
    weights: of the model, by parameter name.
    settings: of the calibration.
    device: the device that the blocks run on.
    batches: token ids [b, T] on the device.
    layers: the layers to quantise of each block, in module order.
    resume: the folder's state.
    quantize: chooses codes and scales of a group.
    streams: the tokens of each model that the objective names; set by `run`.
    calls: the blocks' arguments; set by `run`.
    """

    blocks: Blocks
    weights: Mapping[str, Weight]
    settings: Calibration
    device: torch.device
    batches: tuple[torch.Tensor, ...]
    layers: list[list[QuantizedLayer]]
    resume: ResumeState
    quantize: Quantize
    streams: list[ActivationStream] = field(default_factory=list)
    calls: CallTable = field(default_factory=dict)

    def run(self, missing: Sequence[int]) -> None:
        """Calibrate the blocks whose numbers are in `missing`, which ascends."""
        self.streams = [self._make_stream(name) for name in STREAMS[self.settings.objective]]
        self.resume.tidy()
        try:
            begin = self._start(missing[0])
            with tqdm(total=len(self.layers), initial=begin, desc="calibrating", unit="block", disable=None) as bar:
                for number in range(begin, missing[-1] + 1):
                    if number in missing:
                        self._calibrate(number)
                    else:
                        self._load_results(number)
                    if number < missing[-1]:
                        self._advance(number)
                    bar.update()
        finally:
            for stream in self.streams:
                stream.remove()
                stream.states.close()
        self.resume.note(None)

    def _make_stream(self, name: str) -> ActivationStream:
        dtype, folder = self.settings.torch_dtype, self.resume.folder
        return ActivationStream(
            name=name, states=self._states_file(name, 0), scratch=folder, dtype=dtype, device=self.device
        )

    def _states_file(self, stream: str, block: int) -> ActivationFile:
        """The file of the states that enter a block; it is not opened yet."""
        return ActivationFile(self.resume.states(stream, block), self.settings.torch_dtype, self.device, checked=True)

    def _note_states(self, following: int) -> None:
        """Note that the states that enter block `following` are on disk."""
        self.resume.note(following, {stream.name: stream.states.checksum for stream in self.streams})

    def _start(self, first: int) -> int:
        """Set streams and calls, and return the number of the block that the states on disk enter, at most `first`."""
        few = self.batches[0][:1, :_SAMPLE_TOKENS]
        found, width = self.resume.read(), int(self.blocks.skeleton.model.config.hidden_size)
        shapes = [(*batch.shape, width) for batch in self.batches]
        if found is not None and found[0] <= first:
            begin, checksums = found
            for stream in self.streams:
                stream.states = self._states_file(stream.name, begin)
            if all(stream.states.attach(shapes, checksums.get(stream.name, 0)) for stream in self.streams):
                shown = {batch.shape: batch for batch in (few, *self.batches)}
                self.calls = self._record([*shown.values()], keep=0)
                return begin
        self.resume.note(None)
        for stream in self.streams:
            stream.states.close()
            stream.states = self._states_file(stream.name, 0)
        self.calls = self._record([*self.batches, few], keep=len(self.batches))
        self._note_states(0)
        return 0

    def _record(self, batches: Sequence[torch.Tensor], keep: int) -> CallTable:
        """Run the model as far as its blocks, and keep the states of the first `keep` batches."""

        def accept(number: int, hidden: torch.Tensor) -> None:
            for stream in self.streams:
                if number < keep:
                    stream.states.append(hidden)

        return record_calls(self.blocks, self.weights, batches, self.settings.torch_dtype, accept)

    def _calls_of(self, block: int) -> list[BlockCall]:
        """The block's call for every batch."""
        return [self.calls[batch.shape[0], batch.shape[1]][block] for batch in self.batches]

    def _samples(self, block: int) -> Iterator[tuple[torch.Tensor, BlockCall]]:
        """Inputs to find a block's schedule with: a few tokens, then every batch."""
        states, few = self.streams[0].states, self.batches[0][:1, :_SAMPLE_TOKENS]
        yield states.read(0)[:1, :_SAMPLE_TOKENS], self.calls[few.shape[0], few.shape[1]][block]
        for number, call in enumerate(self._calls_of(block)):
            yield states.read(number), call

    def _calibrate(self, number: int) -> None:
        """Quantise the layers of a block, in the order in which they run, and write the result."""
        layers = {layer.name: layer for layer in self.layers[number]}
        linears = [name.removeprefix(self.blocks.parameter(number, "")).removesuffix(".weight") for name in layers]
        block = self.blocks.load(number, self.weights, self.settings.torch_dtype, self.device)
        schedule = make_schedule(block, linears, self._samples(number), f"{self.blocks.prefix}.{number}")
        for stream in self.streams:
            own = block if stream is self.streams[-1] else copy.deepcopy(block)
            stream.begin(own, self._calls_of(number), schedule)
        codes: dict[str, torch.Tensor] = {}
        scales: dict[str, torch.Tensor] = {}
        ordered = [group.linears for group in schedule.groups] + [(name,) for name in schedule.unreached]
        for place, names in enumerate(tqdm(ordered, desc=f"block {number}", unit="group", disable=None, leave=False)):
            found = [layers[self.blocks.parameter(number, f"{name}.weight")] for name in names]
            group = self._gather(found, place if place < len(schedule.groups) else None)
            for layer, name, part in zip(found, names, self._quantize(group, found), strict=True):
                codes[layer.name], scales[layer.name] = part
                self._restore_weights(name, layer, *part)
        save_block(self.resume.block(number), self.layers[number], codes, scales)

    def _gather(self, layers: Sequence[QuantizedLayer], place: int | None) -> LinearGroup:
        """Sum the moments of the inputs that these layers read.

        place: of their group in the schedule; None: no token reaches them.
        """
        width = layers[0].columns
        hessian = Moments(width, cross=False, device=self.device)
        cross = Moments(width, cross=True, device=self.device) if len(self.streams) > 1 else None
        tokens = 0
        if place is not None:
            batches = zip(*(stream.inputs(place) for stream in self.streams), self.batches, strict=True)
            for x, *others, ids in tqdm(batches, total=len(self.batches), unit="batch", disable=None, leave=False):
                if cross is not None:
                    _check_pair(layers[0].name, x, others[0], ids.numel())
                    if x is not None:
                        cross.add(x, others[0])
                if x is not None:
                    hessian.add(x)
                    tokens += len(x)
        group = LinearGroup(
            names=tuple(layer.name for layer in layers),
            rows=tuple(layer.rows for layer in layers),
            weights=torch.cat([load_weight(self.weights, one.name, torch.float32, self.device) for one in layers]),
            hessian=hessian.finish(),
            cross=None if cross is None else cross.finish(),
            tokens=tokens,
        )
        for moment in (group.hessian, group.cross):
            if moment is not None and not bool(moment.isfinite().all()):
                raise ExportError(
                    f"{layers[0].name}: its inputs are NaN or infinite, or their squares are; expected finite numbers, do the "
                    "weights and config.json belong together?"
                )
        return group

    def _quantize(
        self, group: LinearGroup, layers: Sequence[QuantizedLayer]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Codes and scales of each layer of a group, as the quantiser chose them; what does not fit is refused."""
        codes, scales = self.quantize(group)
        first, rows, total = layers[0], list(group.rows), sum(group.rows)
        most = 1 << (first.bits - 1)
        if (
            codes.dtype != torch.int8
            or tuple(codes.shape) != (total, first.columns)
            or tuple(scales.shape) != (total, first.groups)
            or int(codes.min()) < -most
            or int(codes.max()) >= most
            or not bool(scales.isfinite().all())
        ):
            raise ExportError(
                f"{first.name}: got codes {codes.dtype}{list(codes.shape)} in {int(codes.min())} .. {int(codes.max())} and "
                f"scales {list(scales.shape)} from the quantiser, expected int8[{total}, {first.columns}] in {-most} .. "
                f"{most - 1} and finite scales [{total}, {first.groups}]"
            )
        return list(zip(torch.split(codes, rows), torch.split(scales.float(), rows), strict=True))

    def _restore_weights(self, name: str, layer: QuantizedLayer, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Give a layer of the quantised stream's block the weights scale * code; the float stream keeps its own."""
        for stream in self.streams:
            if stream.name == QUANTIZED:
                linear = stream.block.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                restored = codes.float().reshape(layer.rows, layer.groups, -1) * scales[..., None]
                linear.weight.data.copy_(restored.reshape(layer.rows, layer.columns))

    def _load_results(self, number: int) -> None:
        """Come to a block whose results are on disk, so that only its outputs are to be computed."""
        block = self.blocks.load(number, self.weights, self.settings.torch_dtype, self.device)
        for stream in self.streams:
            own = block if stream is self.streams[-1] else copy.deepcopy(block)
            stream.begin(own, self._calls_of(number), BlockSchedule(groups=(), parts={}, unreached=()))
        results = open_block(self.resume.block(number), self.layers[number])
        for layer in self.layers[number]:
            codes, scales = (torch.from_numpy(part).to(self.device) for part in results[layer.name].load())
            name = layer.name.removeprefix(self.blocks.parameter(number, "")).removesuffix(".weight")
            self._restore_weights(name, layer, codes, scales)

    def _advance(self, number: int) -> None:
        """Compute the states that enter the next block."""
        for stream in self.streams:
            following = self._states_file(stream.name, number + 1)
            for hidden in stream.outputs():
                following.append(hidden)
            stream.states.close()
            stream.states = following
        self._note_states(number + 1)


def _check_pair(name: str, x: torch.Tensor | None, y: torch.Tensor | None, tokens: int) -> None:
    """Raise UnsupportedError where the two models' inputs of a layer may belong to different tokens."""
    if (x is None) != (y is None) or (x is not None and y is not None and not len(x) == len(y) == tokens):
        raise UnsupportedError(
            f"{name}: reads only tokens routed to it, which may be others in the float model; use objective self or float"
        )
