"""The two adapters of a merge, and the layers that either of them changes."""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from enginewright.exporters.methods.lora.adapter_file import WEIGHTS
from enginewright.exporters.methods.lora.factors import LayerFactors, read_factors
from enginewright.exporters.methods.tada.components import Factors
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.runtime.artifact.adapters.settings import CONFIG, read_settings
from enginewright.runtime.errors import ExportError, UnsupportedError

_PLACE = re.compile(r"(?P<before>.*?)\.(?P<layer>\d+)\.(?P<projection>.+)")
_FUSED = re.compile(r"(^|[._])(w?qkv|query_key_value|c_attn|gate_up)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class AdaptedLayer:
    """A linear layer that one or both adapters change; `read_adapters` creates it.

    module: its name in the model.
    layer: the number of its block; None for a layer outside the blocks.
    projection: its name in the block; the whole name outside the blocks.
    task, domain: the factors; None where the adapter does not change the layer.
    """

    module: str
    layer: int | None
    projection: str
    task: LayerFactors | None
    domain: LayerFactors | None

    @property
    def is_shared(self) -> bool:
        """Whether both adapters change the layer."""
        return self.task is not None and self.domain is not None

    @property
    def rank(self) -> int:
        """The larger rank of the two."""
        return max(each.rank for each in (self.task, self.domain) if each is not None)

    def load(self) -> tuple[Factors, Factors]:
        """The factors of task and domain, float32; an adapter that does not change the layer has one of 0, of rank 1."""
        first = self.task or self.domain
        assert first is not None
        out, into = first.shape
        nothing: Factors = np.zeros((out, 1), np.float32), np.zeros((1, into), np.float32)
        return _arrays(self.task) or nothing, _arrays(self.domain) or nothing


@dataclass(frozen=True, kw_only=True)
class AdapterPair:
    """Two adapters of one model; `read_adapters` creates it.

    layers: those that either changes, in the model's order.
    base: the model's name, which both adapters have, or the checkpoint's.
    stored: the type of both adapters' numbers; float32 where they differ.
    digests: of each adapter's files.
    """

    layers: tuple[AdaptedLayer, ...]
    base: str
    stored: torch.dtype
    digests: tuple[str, str]

    @property
    def rank(self) -> int:
        """The largest rank of a layer."""
        return max(each.rank for each in self.layers)

    @property
    def sum_of_ranks(self) -> int:
        """The largest sum of both ranks in a layer."""
        return max(sum(each.rank for each in (one.task, one.domain) if each is not None) for one in self.layers)


def read_adapters(task: Path, domain: Path, checkpoint: Checkpoint) -> AdapterPair:
    """Open both adapters; the same one twice gives a warning on standard error.

    Raises:
        ExportError: a file is missing or broken, an adapter does not fit the model, or they name different bases.
        UnsupportedError: an adapter is more than factors of linear layers, or of fused projections.
    """
    settings = read_settings(task), read_settings(domain)
    bases = [each.base.rstrip("/") for each in settings]
    if all(bases) and bases[0].rpartition("/")[2] != bases[1].rpartition("/")[2]:
        raise ExportError(
            f"{settings[1].path}: got an adapter of {bases[1]!r}, expected one of {bases[0]!r} as {task} is; if both are one "
            "model, make base_model_name_or_path equal in both files"
        )
    digests = _digest(task), _digest(domain)
    if digests[0] == digests[1]:
        print(f"warning: {domain} is the same adapter as {task}: the result is that adapter", file=sys.stderr)
    ours, theirs = read_factors(task, checkpoint), read_factors(domain, checkpoint)
    names = list(ours)
    names += [name for name in theirs if name not in ours]
    layers = []
    for name in names:
        if _FUSED.search(name.rpartition(".")[2]):
            raise UnsupportedError(
                f"{task if name in ours else domain}: adapts {name!r}, several projections in one; expected one projection each, "
                "because gates are chosen by projection; train adapters of other layers"
            )
        match = _PLACE.fullmatch(name)
        layers.append(
            AdaptedLayer(
                module=name,
                layer=None if match is None else int(match["layer"]),
                projection=name if match is None else match["projection"],
                task=ours.get(name),
                domain=theirs.get(name),
            )
        )
    if not layers:
        raise ExportError(f"{task}: got no layer that it or {domain} changes, expected one at least")
    stored = {each.stored for each in (*ours.values(), *theirs.values())}
    return AdapterPair(
        layers=tuple(sorted(layers, key=lambda each: (each.layer is None, each.layer or 0))),
        base=bases[0] or bases[1] or checkpoint.name,
        stored=stored.pop() if len(stored) == 1 else torch.float32,
        digests=digests,
    )


def _arrays(factors: LayerFactors | None) -> Factors | None:
    if factors is None:
        return None
    b, a = factors.load()
    return b.numpy(), a.numpy()


def _digest(root: Path) -> str:
    """The digest of an adapter's files."""
    digest = hashlib.sha256((root / CONFIG).read_bytes())
    if (root / WEIGHTS).is_file():  # a missing file is named when the adapter is read
        with (root / WEIGHTS).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
