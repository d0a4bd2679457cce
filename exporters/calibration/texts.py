"""Tokens to calibrate with: windows of a text file, or text that the model itself writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from enginewright.exporters.calibration.blocks import choose_attention, place_tensors
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.skeleton import load_skeleton
from enginewright.exporters.tokenizer.engine_tokenizer import read_tokenizer
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.artifact.files.bounded_file import MOST_TEXT, read_bounded
from enginewright.runtime.artifact.tokenizer_json import tokenizer_errors
from enginewright.runtime.errors import ExportError

_PIECE = 1 << 18  # characters
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")  # most tokenizers split there, so that pieces give the whole text's tokens
SAMPLED_AT_ONCE = 64  # sequences: their keys and values, and one step's logits, are in memory


def tokens_from_file(path: Path, checkpoint: Checkpoint, sequences: int, length: int, seed: int) -> NDArray[np.int64]:
    """Return tokens [sequences, length]: windows of the text file `path`, in its order, at places that `seed` chooses.

    No two windows share a token of the text. If the tokenizer puts special tokens before a text, each window begins with
    them.

    Raises:
        ExportError: the file cannot be read or is too short, or the checkpoint has no tokenizer.
    """
    _check_sizes(checkpoint, sequences, length)
    try:
        text = read_bounded(path, MOST_TEXT, ExportError, "give a text file").decode()
    except UnicodeDecodeError as e:
        raise ExportError(f"{path}: cannot be read as UTF-8 text ({e})") from e
    tokenizer = _open_tokenizer(checkpoint)
    with tokenizer_errors(
        lambda reason: ExportError(f"{path}: the checkpoint's tokenizer cannot encode it ({reason})")
    ):
        pieces = [np.array(piece, np.int64) for piece in _encode(tokenizer, text)]
        start = _special_tokens(tokenizer)
    ids = np.concatenate([np.empty(0, np.int64), *pieces])
    own = length - len(start)
    if own < 1:
        raise ExportError(
            f"calibration: length: got {length}, expected more than the {len(start)} tokens before any text"
        )
    if len(ids) < sequences * own:
        raise ExportError(
            f"{path}: got {len(ids)} tokens, expected at least {sequences * own} for {sequences} sequences of {length}; "
            "give a longer text, or fewer or shorter sequences"
        )
    gaps = np.sort(np.random.default_rng(seed).integers(0, len(ids) - sequences * own + 1, sequences))
    begins = gaps + own * np.arange(sequences)
    return np.stack([np.concatenate([start, ids[begin : begin + own]]) for begin in begins])


def tokens_from_model(
    checkpoint: Checkpoint,
    weights: Mapping[str, Weight],
    sequences: int,
    length: int,
    seed: int,
    *,
    device: torch.device | None = None,
) -> NDArray[np.int64]:
    """Return tokens [sequences, length] that the model draws by its own probabilities.

    A sequence begins with the model's first token, or with a random one where it has none. An end of text does not end a
    sequence. The whole model is in memory meanwhile, in bfloat16 when the checkpoint is stored in that, else in float32;
    so this is for models that are small compared with the machine's memory.

    Raises:
        ExportError: the model's logits are not finite.
    """
    _check_sizes(checkpoint, sequences, length)
    place = device or torch.device("cpu")
    stored = {tensor.dtype for tensor in checkpoint.tensors.values()}
    dtype = torch.bfloat16 if "BF16" in stored else torch.float32
    config = checkpoint.config
    skeleton = load_skeleton(checkpoint, attention=choose_attention(config), max_context=length)
    place_tensors(skeleton.model, "", skeleton.buffers, weights, dtype, place)
    generator = torch.Generator(place).manual_seed(seed)
    ids = torch.empty(sequences, length, dtype=torch.int64, device=place)
    first = getattr(config, "bos_token_id", None)
    if first is None:
        ids[:, 0] = torch.randint(int(config.vocab_size), (sequences,), generator=generator, device=place)
    else:
        ids[:, 0] = int(first)
    with tqdm(total=sequences * (length - 1), desc="writing text", unit="token", disable=None) as bar, torch.no_grad():
        for rows in torch.split(ids, SAMPLED_AT_ONCE):
            _continue(skeleton.model, rows, generator, bar)
    return ids.cpu().numpy()


def _continue(model: Any, rows: torch.Tensor, generator: torch.Generator, bar: tqdm[Any]) -> None:
    """Fill rows[b, length] after their first token."""
    cache = None
    for column in range(1, rows.shape[1]):
        output = model(input_ids=rows[:, column - 1 : column], past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        if not bool(logits.isfinite().all()):
            raise ExportError(
                "calibration: the model's own text: its logits are NaN or infinite; calibrate with a file"
            )
        rows[:, column] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        bar.update(len(rows))


def _check_sizes(checkpoint: Checkpoint, sequences: int, length: int) -> None:
    longest = checkpoint.longest_context
    if sequences < 1 or length < 1 or (longest and length > longest):
        raise ExportError(
            f"calibration: got {sequences} sequences of {length} tokens, expected at least one, of 1 to {longest or 'any'}"
        )


def _open_tokenizer(checkpoint: Checkpoint) -> tokenizers.Tokenizer:
    found = read_tokenizer(checkpoint)
    if found is None:
        raise ExportError(f"{checkpoint.path}: got no tokenizer, expected the model's, to calibrate with a text file")
    return found.core


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> Iterator[list[int]]:
    """The ids of the text, piece by piece, because an encoding takes more than a hundred bytes a character."""
    begin = 0
    while begin < len(text):
        goal = begin + _PIECE
        line = _LINE_END.search(text, goal, goal + _PIECE)
        end = goal if line is None else line.end()
        yield tokenizer.encode(text[begin:end], add_special_tokens=False).ids
        begin = end


def _special_tokens(tokenizer: tokenizers.Tokenizer) -> NDArray[np.int64]:
    """The special tokens that the tokenizer puts before a text."""
    encoded = tokenizer.encode("a", add_special_tokens=True)
    special = encoded.special_tokens_mask
    count = special.index(0) if 0 in special else 0
    return np.array(encoded.ids[:count], np.int64)
