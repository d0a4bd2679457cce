"""The engines under evaluation: their manifests and tokenizers, without their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.files.real_path import real_path
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine directory under evaluation; created by `open_candidates`.

    name: its name in reports, unique among the engines evaluated together.
    root: the directory.
    manifest: its manifest.
    tokenizer: its tokenizer, with the chat template.
    """

    name: str
    root: Path
    manifest: Manifest
    tokenizer: Tokenizer

    @property
    def core(self) -> tokenizers.Tokenizer:
        """The same tokenizer without its chat template."""
        return self.tokenizer.core

    @property
    def bos(self) -> int | None:
        """The token that the tokenizer puts at the beginning of a text; None if it puts none."""
        first = self.tokenizer.encode("a")[:1]
        return first[0] if first and first[0] == self.manifest.model.bos_token_id else None

    def encode(self, text: str, where: str) -> tokenizers.Encoding:
        """Return `text` in tokens, without special tokens.

        where: what the text is, for the error message.

        Raises:
            RequestError: the tokenizer has no token for a piece of the text, or cannot take it.
        """
        encoding = self.tokenizer.encoding(text, add_special_tokens=False)
        unknown = self._unknown_id()
        if unknown is not None and unknown in encoding.ids:
            begin, end = encoding.offsets[encoding.ids.index(unknown)]
            raise RequestError(
                f"{where}: {self.root}: its tokenizer has no token for {text[begin:end]!r} at position {begin}; "
                f"evaluate an engine whose tokenizer can write the text"
            )
        return encoding

    def encode_exactly(self, text: str, where: str) -> list[int]:
        """Return the ids of `text`, after checking that they decode to the same text, apart from white space.

        Raises:
            RequestError: the tokenizer loses a part of the text.
            ArtifactError: it cannot decode it.
        """
        ids = list(self.encode(text, where).ids)
        if (read := "".join(self.tokenizer.decode(ids).split())) != (written := "".join(text.split())):
            at = next((i for i, pair in enumerate(zip(read, written, strict=False)) if pair[0] != pair[1]), len(read))
            raise RequestError(
                f"{where}: {self.root}: its tokenizer turns {written[at : at + 20]!r} into {read[at : at + 20]!r}; "
                f"evaluate an engine whose tokenizer can write the text"
            )
        return ids

    def _unknown_id(self) -> int | None:
        token = getattr(self.core.model, "unk_token", None)
        return None if token is None else self.core.token_to_id(token)


def open_candidates(paths: Sequence[str], reference: str | None) -> list[Candidate]:
    """Open the engines, the reference first where there is one.

    Raises:
        ArtifactError: a path is no engine directory.
        RequestError: an engine is given twice, has no tokenizer, or has another vocabulary than the reference.
    """
    roots = [Path(path) for path in paths]
    for path, count in Counter(map(real_path, roots)).items():
        if count > 1:
            raise RequestError(f"{path}: got this engine {count} times, expected each engine once")
    if reference is not None:
        roots = [Path(reference), *(root for root in roots if real_path(root) != real_path(reference))]
    names = _names(roots)
    candidates = [_open(root, name) for root, name in zip(roots, names, strict=True)]
    for other in candidates[1:] if reference is not None else ():
        _check_vocabulary(candidates[0], other)
    return candidates


def _open(root: Path, name: str) -> Candidate:
    manifest = directory.load(root, verify=True)  # verified now, so that a damaged file does not show after hours
    tokenizer = Tokenizer.load(root, manifest)
    if tokenizer is None:
        raise RequestError(
            f"{root}: got an engine without a tokenizer, expected one that can write the task; "
            f"build it from a checkpoint that has one"
        )
    return Candidate(name=name, root=root, manifest=manifest, tokenizer=tokenizer)


def _names(roots: Sequence[Path]) -> list[str]:
    """Return the name of each folder, with as many of its parents as it takes to tell it from the others."""
    parts = [real_path(root).parts for root in roots]
    names = []
    for own in parts:
        length = 1
        while sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names


def _check_vocabulary(reference: Candidate, other: Candidate) -> None:
    sizes = reference.manifest.model.vocab_size, other.manifest.model.vocab_size
    if sizes[0] != sizes[1]:
        raise RequestError(
            f"--reference {reference.root}: got a vocabulary of {sizes[0]}, expected {sizes[1]}, as {other.root} has; "
            f"compare engines of one checkpoint, or leave --reference out"
        )
    if reference.core.get_vocab() != other.core.get_vocab():
        raise RequestError(
            f"--reference {reference.root}: got other tokens than {other.root} has, expected the same vocabulary; "
            f"compare engines of one checkpoint, or leave --reference out"
        )
