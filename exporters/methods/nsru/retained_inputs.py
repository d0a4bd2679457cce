"""One pass of the frozen model over all texts: the inputs that adapters must not touch, and the states below the adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from tqdm import tqdm

from enginewright.exporters.calibration.atomic_files import replace_file
from enginewright.exporters.methods.nsru.adapted_model import AdaptedModel
from enginewright.exporters.methods.nsru.response_tokens import ResponseTokens
from enginewright.exporters.methods.nsru.subspace import InputSamples
from enginewright.exporters.methods.nsru.unlearn_options import UnlearnOptions
from enginewright.exporters.methods.nsru.unlearning_losses import token_mean_loss
from enginewright.exporters.methods.unfinished_run import read_note
from enginewright.runtime.errors import ExportError

NOTE, TENSORS, STATES = "inputs.json", "inputs.safetensors", "states.float32"
TOKENS = 1024  # of a batch, with its padding
_SAME = 1e-3  # of the largest logit, between runs with and without the states of the lower blocks


@dataclass(frozen=True, kw_only=True)
class SharedInput:
    """What enters q, k and v of a block, or its o; `observe_inputs` creates it.

    count: the number of the retained texts' samples.
    mean_share: the share of their energy that is their common mean.
    basis: U [d, k].
    retained, forgotten: rows [m, d] with the singular values and right singular vectors of either file's samples.
    """

    count: int
    mean_share: float
    basis: torch.Tensor
    retained: torch.Tensor
    forgotten: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ObservedInputs:
    """The results of the pass; `observe_inputs` creates it.

    inputs: by the name of the first projection that reads them.
    states: [tokens, d], mapped from disk, sequence after sequence; None where the model's upper blocks read more than these.
    bounds: the states from bounds[s] up to bounds[s + 1] are those of sequence s.
    reference: of each undesired answer the frozen model's mean loss over its tokens.
    """

    inputs: dict[str, SharedInput]
    states: NDArray[np.float32] | None
    bounds: NDArray[np.int64]
    reference: tuple[float, ...]

    def states_of(self, sequences: Sequence[int]) -> list[torch.Tensor] | None:
        """The states [T, d] of these sequences."""
        if self.states is None:
            return None
        return [torch.from_numpy(np.array(self.states[self.bounds[s] : self.bounds[s + 1]])) for s in sequences]


def reader_of(name: str, names: Sequence[str]) -> str:
    """The first of `names` that reads the same input as the projection `name`: q, k and v of a block share theirs."""
    owner, _, last = name.rpartition(".")
    together = ("q_proj", "k_proj", "v_proj")
    shared = [f"{owner}.{one}" for one in together] if last in together else [name]
    return next(one for one in shared if one in names)


def length_batches(texts: Sequence[ResponseTokens], chosen: Sequence[int]) -> Iterator[list[int]]:
    """Cut the sequences with the numbers `chosen` into batches of at most `TOKENS` tokens, the longest first."""
    batch: list[int] = []
    for i in sorted(chosen, key=lambda i: -len(texts[i].ids)):
        if batch and (len(batch) + 1) * len(texts[batch[0]].ids) > TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def observe_inputs(
    model: AdaptedModel,
    texts: dict[str, Sequence[ResponseTokens]],
    folder: Path,
    options: UnlearnOptions,
    most: int | None,
) -> ObservedInputs:
    """Run the frozen model over all texts, or read what an earlier run left in `folder`.

    texts: undesired, safe and retain; a sequence's number counts through them in this order.
    most: the bound of k; None: as `UnlearnOptions.most` says of small models.

    Raises:
        ExportError: a state or an input is not finite.
    """
    sequences = [each for kind in texts.values() for each in kind]
    bounds = np.cumsum([0, *(len(each.ids) for each in sequences)])
    if not (folder / NOTE).is_file():
        _observe(model, texts, folder, options, most)
    note = read_note(folder / NOTE)
    tensors = load_file(folder / TENSORS)
    inputs = {
        name: SharedInput(
            count=about["count"],
            mean_share=about["mean_share"],
            basis=tensors[f"{name} basis"],
            retained=tensors[f"{name} retained"],
            forgotten=tensors[f"{name} forgotten"],
        )
        for name, about in note["inputs"].items()
    }
    shape = (int(bounds[-1]), int(note["width"]))
    states = np.memmap(folder / STATES, np.float32, "r", shape=shape) if note["is_reused"] else None
    return ObservedInputs(inputs=inputs, states=states, bounds=bounds, reference=tuple(note["reference"]))


def _observe(
    model: AdaptedModel,
    texts: dict[str, Sequence[ResponseTokens]],
    folder: Path,
    options: UnlearnOptions,
    most: int | None,
) -> None:
    """Run the pass and write its results; the note comes last."""
    sequences = [each for kind in texts.values() for each in kind]
    bounds = np.cumsum([0, *(len(each.ids) for each in sequences)])
    samples = _Samples(model, len(texts["undesired"]), len(sequences) - len(texts["retain"]), options.at)
    states: Any = None
    is_reused = model.is_split
    with tqdm(total=len(sequences), desc="inputs", unit="text", disable=None) as bar:
        for batch in length_batches(sequences, range(len(sequences))):
            given = [sequences[i] for i in batch]
            found = model.observe(given, samples.recorder(batch, given))
            if not all(bool(each.isfinite().all()) for each in found):
                raise ExportError(f"block {model.first}: its input is NaN or infinite; are the weights damaged?")
            if states is None:
                shape = (int(bounds[-1]), found[0].shape[1])
                states = np.memmap(folder / STATES, np.float32, "w+", shape=shape)
                is_reused = is_reused and _is_enough(model, given, found)
            for i, each in zip(batch, found, strict=True):
                states[bounds[i] : bounds[i + 1]] = each.numpy()
            bar.update(len(batch))
    states.flush()
    about, tensors = samples.results(options, most)
    replace_file(folder / TENSORS, save(tensors))
    reference = _reference(model, texts["undesired"]) if options.method == "npo" else []
    note = {"inputs": about, "width": states.shape[1], "is_reused": is_reused, "reference": reference}
    replace_file(folder / NOTE, json.dumps(note).encode())


class _Samples:
    """The samples of both files by the first projection that reads them; `_observe` creates it.

    forgotten: the sequences below this number are the undesired answers.
    retained: those from this number on are the retained ones.
    """

    def __init__(self, model: AdaptedModel, forgotten: int, retained: int, at: str) -> None:
        self._forgotten, self._first_retained, self._at = forgotten, retained, at
        names = list(model.projections)
        self._width = {
            name: layer.in_features for name, layer in model.projections.items() if reader_of(name, names) == name
        }
        self._retained, self._forget = (
            {name: InputSamples(size) for name, size in self._width.items()} for _ in range(2)
        )

    def recorder(self, batch: Sequence[int], given: Sequence[ResponseTokens]) -> Callable[[str, torch.Tensor], None]:
        """A function that takes the samples of this batch."""
        kept = [row for row, number in enumerate(batch) if number >= self._first_retained]
        lost = [row for row, number in enumerate(batch) if number < self._forgotten]

        def record(name: str, inputs: torch.Tensor) -> None:
            if name in self._width:
                for rows, samples in ((kept, self._retained[name]), (lost, self._forget[name])):
                    if rows:
                        samples.add(torch.cat([_at(inputs[row], given[row], self._at) for row in rows]))

        return record

    def results(self, options: UnlearnOptions, most: int | None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The numbers and the tensors of each `SharedInput`."""
        about: dict[str, Any] = {}
        tensors: dict[str, torch.Tensor] = {}
        for name, width in self._width.items():
            own, bound = self._retained[name], most or min(128, max(1, width // 4))
            basis = own.basis(options.energy, bound, centred=options.centre, of_total=options.energy_of == "total")
            parts = {"basis": basis, "retained": own.rows().float(), "forgotten": self._forget[name].rows().float()}
            tensors |= {f"{name} {part}": values.contiguous() for part, values in parts.items()}
            about[name] = {"count": own.count, "mean_share": own.mean_share}
        return about, tensors


def _at(inputs: torch.Tensor, text: ResponseTokens, at: str) -> torch.Tensor:
    """The samples [n, d] of one text's inputs [T, d]."""
    chosen = inputs[text.sampled(at)]
    return chosen.mean(0, keepdim=True) if at == "mean" else chosen


def _is_enough(model: AdaptedModel, batch: Sequence[ResponseTokens], states: Sequence[torch.Tensor]) -> bool:
    """Whether the upper blocks give the same logits from the states alone; not so where they mix over depth."""
    with torch.no_grad():
        whole, own = torch.cat(model.logits(batch)), torch.cat(model.logits(batch, states))
    return float((whole - own).abs().max()) <= _SAME * float(whole.abs().max())


def _reference(model: AdaptedModel, undesired: Sequence[ResponseTokens]) -> list[float]:
    """The frozen model's mean loss over the tokens of each answer."""
    losses = [0.0] * len(undesired)
    with torch.no_grad():
        for batch in length_batches(undesired, range(len(undesired))):
            for i, logits in zip(batch, model.logits([undesired[i] for i in batch]), strict=True):
                losses[i] = float(answer_loss(logits, undesired[i]))
    return losses


def answer_loss(logits: torch.Tensor, text: ResponseTokens) -> torch.Tensor:
    """The mean loss over an answer's tokens, of which `logits` [n, V] are the predictions."""
    targets = torch.tensor(text.ids[text.prompt :])
    return token_mean_loss(logits, targets, torch.ones(len(targets), dtype=torch.bool))
