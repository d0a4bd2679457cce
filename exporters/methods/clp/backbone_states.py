"""Computes the states of a frozen backbone over a text once, and keeps them on disk.

A state is the vector that the output projection reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from enginewright.exporters.methods.unfinished_run import read_note

BATCH = 8  # texts


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """Token ids of one text; the command `tune` creates it.

    ids: of the prompt and the text.
    given: how many of them are the prompt. The heads do not learn to predict the prompt.
    """

    ids: tuple[int, ...]
    given: int = 0

    @property
    def first(self) -> int:
        """The first position whose state counts."""
        return max(0, self.given - 1)

    @property
    def positions(self) -> int:
        """The number of positions whose states count."""
        return len(self.ids) - self.first


@dataclass(frozen=True, kw_only=True)
class States:
    """The states of every position that counts, sequence after sequence; `compute_states` creates it.

    states: float32 [P, d], mapped from disk.
    best: int64 [P], the token that the backbone would choose there, mapped from disk.
    bounds: the positions from bounds[s] up to bounds[s + 1] are those of sequence s.
    """

    states: NDArray[np.float32]
    best: NDArray[np.int64]
    bounds: NDArray[np.int64]

    def rows(self, sequences: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of these sequences, in their order."""
        return np.concatenate([np.arange(self.bounds[s], self.bounds[s + 1]) for s in sequences])


def compute_states(model: PreTrainedModel, texts: Sequence[TokenSequence], folder: Path) -> States:
    """Run the frozen model over the texts; states that an earlier run left in `folder` are not computed again."""
    bounds = np.cumsum([0, *(text.positions for text in texts)])
    hidden = int(model.get_output_embeddings().weight.shape[1])  # type: ignore[no-untyped-call]
    states = _map(folder / "states.float32", np.float32, (int(bounds[-1]), hidden))
    best = _map(folder / "best.int64", np.int64, (int(bounds[-1]),))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))  # texts of a batch are padded to the longest
    note = folder / "states.json"
    done = int(read_note(note)["sequences"]) if note.is_file() else 0
    with tqdm(total=len(texts), initial=done, desc="states", unit="text", disable=None) as bar, torch.no_grad():
        for begin in range(done, len(texts), BATCH):
            batch = order[begin : begin + BATCH]
            for i, (found, chosen) in zip(batch, _run(model, [texts[i] for i in batch]), strict=True):
                to, first = slice(bounds[i], bounds[i + 1]), texts[i].first
                states[to], best[to] = found[first:], chosen[first:]
            states.flush()
            best.flush()
            note.write_text(json.dumps({"sequences": begin + len(batch)}))
            bar.update(len(batch))
    return States(states=states, best=best, bounds=bounds)


def _map(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[Any]]:
    return np.memmap(path, dtype, "r+" if path.exists() else "w+", shape=shape)


def _run(model: PreTrainedModel, batch: Sequence[TokenSequence]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """States [T, d] and choices [T] of each text. Texts are padded on the right, which no token before it sees."""
    ids = torch.zeros(len(batch), max(len(text.ids) for text in batch), dtype=torch.int64)
    for row, text in enumerate(batch):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
    with _projection_input(model) as read:
        logits = model(input_ids=ids, use_cache=False).logits
    for row, text in enumerate(batch):
        count = len(text.ids)
        yield read[0][row, :count].float().numpy(), logits[row, :count].argmax(-1).numpy()


@contextmanager
def _projection_input(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Collect the inputs of the output projection while the context is entered."""
    found: list[torch.Tensor] = []
    projection = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    hook = projection.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        hook.remove()
