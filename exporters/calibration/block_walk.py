"""The tokens' passage through the blocks: what each block's layers read is summed, quantised behind, and carried on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm import tqdm

from enginewright.exporters.calibration.activation_file import ActivationFile
from enginewright.exporters.calibration.activation_stream import ActivationStream
from enginewright.exporters.calibration.block_calls import BlockCall, Calls, enter
from enginewright.exporters.calibration.block_results import QuantizedLayer, open_block, save_block
from enginewright.exporters.calibration.block_schedule import BlockSchedule, make_schedule
from enginewright.exporters.calibration.blocks import Blocks, load_weight
from enginewright.exporters.calibration.linear_group import Calibration, LinearGroup, Quantize
from enginewright.exporters.calibration.moments import Moments
from enginewright.exporters.calibration.resume import ResumeState
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError, UnsupportedError

QUANTIZED, FLOAT = "quantized", "float"
STREAMS = {"self": (QUANTIZED,), "cross": (QUANTIZED, FLOAT), "float": (FLOAT,)}  # by objective
_FEW = 8  # tokens that show a block's plan


@dataclass(kw_only=True)
class BlockWalk:
    """One run over the blocks that are not done; `calibrate` makes it. `run` sets streams and calls.

    batches: token ids [b, T] on the device. layers: of each block, in module order.
    """

    blocks: Blocks
    weights: Mapping[str, Weight]
    settings: Calibration
    device: torch.device
    batches: tuple[torch.Tensor, ...]
    layers: list[list[QuantizedLayer]]
    progress: ResumeState
    quantize: Quantize
    streams: list[ActivationStream] = field(default_factory=list)
    calls: Calls = field(default_factory=dict)

    def run(self, missing: Sequence[int]) -> None:
        """Calibrate the blocks whose numbers are in `missing`, in order."""
        self.streams = [self._stream(name) for name in STREAMS[self.settings.objective]]
        self.progress.tidy()
        try:
            begin = self._enter(missing[0])
            with tqdm(total=len(self.layers), initial=begin, desc="calibrating", unit="block", disable=None) as bar:
                for number in range(begin, missing[-1] + 1):
                    if number in missing:
                        self._calibrate(number)
                    else:
                        self._restore(number)
                    if number < missing[-1]:
                        self._move_on(number)
                    bar.update()
        finally:
            for stream in self.streams:
                stream.remove()
                stream.states.close()
        self.progress.note(None)

    def _stream(self, name: str) -> ActivationStream:
        dtype, folder = self.settings.torch_dtype, self.progress.folder
        return ActivationStream(
            name=name, states=self._states(name, 0), scratch=folder, dtype=dtype, device=self.device
        )

    def _states(self, stream: str, block: int) -> ActivationFile:
        """What enters a block; nothing is opened yet."""
        return ActivationFile(self.progress.states(stream, block), self.settings.torch_dtype, self.device, checked=True)

    def _note(self, following: int) -> None:
        """Note that what enters block `following` is on disk."""
        self.progress.note(following, {stream.name: stream.states.checksum for stream in self.streams})

    def _enter(self, first: int) -> int:
        """Find the streams before block `first`, or one before it; return its number."""
        few = self.batches[0][:1, :_FEW]
        found, width = self.progress.read(), int(self.blocks.skeleton.model.config.hidden_size)
        shapes = [(*batch.shape, width) for batch in self.batches]
        if found is not None and found[0] <= first:
            begin, checksums = found
            for stream in self.streams:
                stream.states = self._states(stream.name, begin)
            if all(stream.states.attach(shapes, checksums.get(stream.name, 0)) for stream in self.streams):
                shown = {batch.shape: batch for batch in (few, *self.batches)}
                self.calls = self._entered([*shown.values()], keep=0)
                return begin
        self.progress.note(None)
        for stream in self.streams:
            stream.states.close()
            stream.states = self._states(stream.name, 0)
        self.calls = self._entered([*self.batches, few], keep=len(self.batches))
        self._note(0)
        return 0

    def _entered(self, batches: Sequence[torch.Tensor], keep: int) -> Calls:
        """Run what is before the blocks, and keep the states of the first `keep` batches."""

        def accept(number: int, hidden: torch.Tensor) -> None:
            for stream in self.streams:
                if number < keep:
                    stream.states.append(hidden)

        return enter(self.blocks, self.weights, batches, self.settings.torch_dtype, accept)

    def _calls(self, block: int) -> list[BlockCall]:
        """The block's call for every batch."""
        return [self.calls[batch.shape[0], batch.shape[1]][block] for batch in self.batches]

    def _samples(self, block: int) -> Iterator[tuple[torch.Tensor, BlockCall]]:
        """What a block may be shown: a few tokens, then all."""
        states, few = self.streams[0].states, self.batches[0][:1, :_FEW]
        yield states.read(0)[:1, :_FEW], self.calls[few.shape[0], few.shape[1]][block]
        for number, call in enumerate(self._calls(block)):
            yield states.read(number), call

    def _calibrate(self, number: int) -> None:
        """Quantise the layers of a block, in the order they run, and write the result."""
        layers = {layer.name: layer for layer in self.layers[number]}
        names = [name.removeprefix(self.blocks.parameter(number, "")).removesuffix(".weight") for name in layers]
        block = self.blocks.load(number, self.weights, self.settings.torch_dtype, self.device)
        plan = make_schedule(block, names, self._samples(number), f"{self.blocks.prefix}.{number}")
        for stream in self.streams:
            own = block if stream is self.streams[-1] else copy.deepcopy(block)
            stream.begin(own, self._calls(number), plan)
        codes: dict[str, torch.Tensor] = {}
        scales: dict[str, torch.Tensor] = {}
        groups = [group.linears for group in plan.groups] + [(name,) for name in plan.unreached]
        for place, group in enumerate(tqdm(groups, desc=f"block {number}", unit="stage", disable=None, leave=False)):
            found = [layers[self.blocks.parameter(number, f"{name}.weight")] for name in group]
            stage = self._gather(found, place if place < len(plan.groups) else None)
            for layer, name, part in zip(found, group, self._quantize(stage, found), strict=True):
                codes[layer.name], scales[layer.name] = part
                self._put(name, layer, *part)
        save_block(self.progress.block(number), self.layers[number], codes, scales)

    def _gather(self, layers: Sequence[QuantizedLayer], group: int | None) -> LinearGroup:
        """Sum what the layers of a group read; None for layers that read nothing."""
        width = layers[0].columns
        hessian = Moments(width, cross=False, device=self.device)
        cross = Moments(width, cross=True, device=self.device) if len(self.streams) > 1 else None
        tokens = 0
        if group is not None:
            batches = zip(*(stream.inputs(group) for stream in self.streams), self.batches, strict=True)
            for x, *others, ids in tqdm(batches, total=len(self.batches), unit="batch", disable=None, leave=False):
                if cross is not None:
                    _check_pair(layers[0].name, x, others[0], ids.numel())
                    if x is not None:
                        cross.add(x, others[0])
                if x is not None:
                    hessian.add(x)
                    tokens += len(x)
        stage = LinearGroup(
            names=tuple(layer.name for layer in layers),
            rows=tuple(layer.rows for layer in layers),
            weights=torch.cat([load_weight(self.weights, one.name, torch.float32, self.device) for one in layers]),
            hessian=hessian.finish(),
            cross=None if cross is None else cross.finish(),
            tokens=tokens,
        )
        for moment in (stage.hessian, stage.cross):
            if moment is not None and not bool(moment.isfinite().all()):
                raise ExportError(
                    f"{layers[0].name}: its inputs are NaN or infinite, or their squares are; expected finite numbers, do the "
                    "weights and config.json belong together?"
                )
        return stage

    def _quantize(
        self, stage: LinearGroup, layers: Sequence[QuantizedLayer]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Codes and scales of each layer of a stage, as the quantiser chose them."""
        codes, scales = self.quantize(stage)
        first, rows, total = layers[0], list(stage.rows), sum(stage.rows)
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

    def _put(self, name: str, layer: QuantizedLayer, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Let a layer of the quantised stream's block use its restored weights from now on."""
        for stream in self.streams:
            if stream.name == QUANTIZED:
                linear = stream.block.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                restored = codes.float().reshape(layer.rows, layer.groups, -1) * scales[..., None]
                linear.weight.data.copy_(restored.reshape(layer.rows, layer.columns))

    def _restore(self, number: int) -> None:
        """Come to a block whose result is there: only its outputs are to be computed."""
        block = self.blocks.load(number, self.weights, self.settings.torch_dtype, self.device)
        for stream in self.streams:
            own = block if stream is self.streams[-1] else copy.deepcopy(block)
            stream.begin(own, self._calls(number), BlockSchedule(groups=(), parts={}, unreached=()))
        results = open_block(self.progress.block(number), self.layers[number])
        for layer in self.layers[number]:
            codes, scales = (torch.from_numpy(part).to(self.device) for part in results[layer.name].load())
            name = layer.name.removeprefix(self.blocks.parameter(number, "")).removesuffix(".weight")
            self._put(name, layer, codes, scales)

    def _move_on(self, number: int) -> None:
        """Compute what enters the next block."""
        for stream in self.streams:
            following = self._states(stream.name, number + 1)
            for hidden in stream.outputs():
                following.append(hidden)
            stream.states.close()
            stream.states = following
        self._note(number + 1)


def _check_pair(name: str, x: torch.Tensor | None, y: torch.Tensor | None, tokens: int) -> None:
    """Refuse inputs of the two models that need not be of the same tokens."""
    if (x is None) != (y is None) or (x is not None and y is not None and not len(x) == len(y) == tokens):
        raise UnsupportedError(
            f"{name}: reads only tokens routed to it, which may be others in the float model; use objective self or float"
        )
