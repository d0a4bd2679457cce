"""Merges two adapters layer by layer and writes the result; a run that was broken off goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

from enginewright.exporters.calibration.atomic_files import replace_file
from enginewright.exporters.calibration.blocks import choose_attention, load_blocks
from enginewright.exporters.methods.lora.write_adapter import write_adapter
from enginewright.exporters.methods.tada.adapter_pair import AdapterPair
from enginewright.exporters.methods.tada.layer_merge import Probes, choose_gates, merge_layer
from enginewright.exporters.methods.tada.merge_report import Dropped, MergedLayer, MergeReport, depth_trends, draw_gates
from enginewright.exporters.methods.tada.options import MergeOptions
from enginewright.exporters.methods.tada.probe_texts import Tokens
from enginewright.exporters.methods.tada.probing import ProbeSums, probe_layers
from enginewright.exporters.methods.unfinished_run import read_note, unfinished_run
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import load_skeleton
from enginewright.runtime.errors import UnsupportedError

PROBES = "probes.json"

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class MergeJob:
    """One merge: the model, the adapters, how they are merged; the caller creates it.

    checkpoint: the model of both adapters.
    names: the folders of task and domain, for the report.
    texts: token ids of each text of the probe; empty for none, which gates that need no probe can do without.
    picture: whether a picture of the gates is drawn, by the scheme tada.
    """

    checkpoint: Checkpoint
    pair: AdapterPair
    names: tuple[str, str]
    options: MergeOptions
    texts: Sequence[Tokens]
    picture: bool

    @property
    def rank(self) -> int:
        """The rank of the merged adapter."""
        return self.pair.sum_of_ranks if self.options.merge == "linear" else self.pair.rank


def check_layers(checkpoint: Checkpoint, pair: AdapterPair) -> None:
    """Raise UnsupportedError unless the inputs of every layer that both adapters change can be probed."""
    blocks = load_blocks(checkpoint, None)
    known = {
        blocks.parameter(number, name) for number in range(len(blocks.modules)) for name in blocks.linears(number, ())
    }
    for each in pair.layers:
        if each.is_shared and each.module not in known:
            raise UnsupportedError(
                f"{each.module}: is in both adapters and no linear layer of a block, expected one, whose inputs the probe "
                "reads; use --gate const, or train one of the adapters without it"
            )


def probe_pair(checkpoint: Checkpoint, pair: AdapterPair, texts: Sequence[Tokens]) -> dict[str, ProbeSums]:
    """Return the probe's sums of each layer that both adapters change, by its name; the model runs block by block."""
    config = checkpoint.config
    skeleton = load_skeleton(
        checkpoint,
        attention=choose_attention(config),
        max_context=checkpoint.default_context or len(max(texts, key=len)),
    )
    weights = bind_parameters(checkpoint, skeleton.model)
    shared = {each.module: each.load for each in pair.layers if each.is_shared}
    sums = probe_layers(checkpoint, weights, texts, shared)
    if unread := [module for module, each in sums.items() if not each.tokens]:
        print(
            f"warning: {len(unread)} layers read no token of the texts, so both probes are 0: {unread[0]}",
            file=sys.stderr,
        )
    return sums


def merge_adapters(job: MergeJob, output: Path) -> MergeReport:
    """Merge, write the adapter, report.json and the picture to `output`, and return the report.

    Raises:
        ExportError: `output` holds something else, or the unfinished run of another request.
    """
    with unfinished_run(output, _describe(job)) as folder:
        sums = _probe(job, folder)
        found = [each.results(job.options.mean_name) for each in sums.values()]
        probes: Probes = {module: (own[0], own[1]) for module, own in zip(sums, found, strict=True)}
        factors, layers = merge_layers(job, probes, lambda number, make: _kept(folder, number, make))
        report = MergeReport(
            method="TaDA-R" if job.options.merge == "tada" else job.options.merge,
            base=job.pair.base,
            task=job.names[0],
            domain=job.names[1],
            options=job.options.describe(),
            rank=job.rank,
            texts=len(job.texts) if sums else 0,
            tokens=sum(map(len, job.texts)) if sums else 0,
            depth=depth_trends(layers),
            layers=layers,
        )
        write_adapter(output, factors, base=job.pair.base, dtype=job.pair.stored)
        report.write(output)
        if job.picture and job.options.merge == "tada":
            draw_gates(report, output)
        return report


def merge_layers(
    job: MergeJob,
    probes: Probes,
    keep: Callable[
        [int, Callable[[], tuple[dict[str, torch.Tensor], MergedLayer]]], tuple[dict[str, torch.Tensor], MergedLayer]
    ],
) -> tuple[Factors, list[MergedLayer]]:
    """Return the factors of every layer, in float32, and the accounts.

    probes: by the layer's name; empty without a probe.
    keep: called with the number of a layer and what merges it; returns the result of that, or of an earlier run.
    """
    options, layers = job.options, job.pair.layers
    gates: Mapping[str, float] = {}
    if options.merge == "tada":
        gates = choose_gates(layers, options, probes, int(job.checkpoint.config.num_hidden_layers))
    factors: Factors = {}
    reports = []
    for number, layer in enumerate(tqdm(layers, desc="merging", unit="layer", disable=None)):

        def make(number: int = number) -> tuple[dict[str, torch.Tensor], MergedLayer]:
            own = layers[number]
            seed = options.seed * len(layers) + number
            b, a, report = merge_layer(own, options, gates.get(own.module), probes.get(own.module), job.rank, seed)
            return {"a": torch.from_numpy(a).float(), "b": torch.from_numpy(b).float()}, report

        tensors, report = keep(number, make)
        factors[layer.module] = tensors["b"], tensors["a"]
        reports.append(report)
    return factors, reports


def _describe(job: MergeJob) -> dict[str, Any]:
    """The request as the folder of an unfinished run keeps it."""
    digest = hashlib.sha256()
    for text in job.texts:
        digest.update(np.array([len(text), *text], np.int64).tobytes())
    return {
        "model": str(job.checkpoint.path),
        "adapters": list(job.pair.digests),
        "texts": digest.hexdigest(),
        "options": dataclasses.asdict(job.options),
    }


def _probe(job: MergeJob, folder: Path) -> dict[str, ProbeSums]:
    """The probe's sums of this run, or of the one that was broken off; none without texts, or where no layer is shared."""
    if not job.texts or job.options.merge != "tada" or not any(each.is_shared for each in job.pair.layers):
        return {}
    saved = folder / PROBES
    if not saved.is_file():
        sums = probe_pair(job.checkpoint, job.pair, job.texts)
        replace_file(saved, json.dumps({module: dataclasses.asdict(each) for module, each in sums.items()}).encode())
    return {module: ProbeSums(**each) for module, each in read_note(saved).items()}


def _kept(
    folder: Path, number: int, make: Callable[[], tuple[dict[str, torch.Tensor], MergedLayer]]
) -> tuple[dict[str, torch.Tensor], MergedLayer]:
    """The result of a layer as an earlier run left it in the folder, or as it is made and left there now."""
    file, note = folder / f"{number}.safetensors", folder / f"{number}.json"
    if note.is_file():
        return load_file(file), _read_report(read_note(note))
    tensors, report = make()
    replace_file(file, save(tensors))
    replace_file(note, json.dumps(dataclasses.asdict(report)).encode())
    return tensors, report


def _read_report(found: dict[str, Any]) -> MergedLayer:
    """The account of a layer as `dataclasses.asdict` gave it."""
    dropped = {key: tuple(Dropped(**each) for each in found[key]) for key in ("dropped_task", "dropped_domain")}
    cosines = None if found["cosines"] is None else tuple(found["cosines"])
    return MergedLayer(**{**found, **dropped, "cosines": cosines})
