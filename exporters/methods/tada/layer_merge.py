"""The merge of one layer by any scheme, with its account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from enginewright.exporters.methods.tada.adapter_pair import AdaptedLayer
from enginewright.exporters.methods.tada.baselines import merge_baseline
from enginewright.exporters.methods.tada.combining import MergeInfo, merge
from enginewright.exporters.methods.tada.components import Doubles
from enginewright.exporters.methods.tada.layer_gates import gates, ramp_gates, ratio_gates
from enginewright.exporters.methods.tada.merge_report import Dropped, MergedLayer
from enginewright.exporters.methods.tada.options import MergeOptions

Probes = Mapping[str, tuple[float, float]]
"""The probes of task and domain by the layer's name in the model."""


def choose_gates(layers: Sequence[AdaptedLayer], options: MergeOptions, probes: Probes, count: int) -> dict[str, float]:
    """Return the domain's share of each layer that both adapters change, by its name; options are those of tada.

    count: the number of the model's blocks.
    """
    shared = [each for each in layers if each.is_shared]
    found: dict[str, float] = {}
    for projection in dict.fromkeys(each.projection for each in shared):
        own = [each for each in shared if each.projection == projection]
        for layer, gate in zip(own, _gates(own, options, probes, count), strict=True):
            found[layer.module] = float(gate)
    return found


def _gates(own: Sequence[AdaptedLayer], options: MergeOptions, probes: Probes, count: int) -> Doubles:
    """The gates of the layers of one projection."""
    if options.gate_name == "const":
        return np.full(len(own), options.number("share"))
    if options.gate_name == "ramp":
        return ramp_gates([each.layer or 0 for each in own], count)
    task, domain = zip(*(probes[each.module] for each in own), strict=True)
    if options.gate_name == "ratio":
        return ratio_gates(task, domain)
    return gates(task, domain, kappa=options.number("kappa"), shift=options.number("shift"))


def merge_layer(
    layer: AdaptedLayer,
    options: MergeOptions,
    gate: float | None,
    probes: tuple[float, float] | None,
    rank: int,
    seed: int,
) -> tuple[Doubles, Doubles, MergedLayer]:
    """Return B [o, rank] and A [rank, n] of the merged layer, padded with 0, and the account.

    gate: the domain's share, by the scheme tada where both adapters change the layer; else None.
    rank: of the merged adapter, at least the layer's own.
    seed: of DARE's choice.
    """
    task, domain = layer.load()
    info: MergeInfo | None = None
    if options.merge != "tada":
        own = rank if options.merge == "linear" else layer.rank
        b, a, tail = merge_baseline(task, domain, options, own, seed)
    else:
        share = gate if gate is not None else float(layer.task is None)
        theta = options.number("theta") if layer.is_shared else np.inf  # one adapter alone has no conflicts
        b, a, info = merge(task, domain, share, theta, scale=options.number("scale"), rank=layer.rank)
        tail = info["tail"]
        gate = share
    dropped = ((), ()) if info is None or not layer.is_shared else _dropped(info)
    report = MergedLayer(
        module=layer.module,
        layer=layer.layer,
        projection=layer.projection,
        adapters="both" if layer.is_shared else "task" if layer.task else "domain",
        rho_task=None if probes is None else probes[0],
        rho_domain=None if probes is None else probes[1],
        gate=gate,
        cosines=None
        if info is None or not layer.is_shared
        else (float(info["cosines"].min()), float(info["cosines"].max())),
        dropped_task=dropped[0],
        dropped_domain=dropped[1],
        norm=float(np.linalg.norm(np.linalg.qr(b, mode="r") @ a)),
        tail=tail,
    )
    missing = rank - b.shape[1]
    return np.pad(b, ((0, 0), (0, missing))), np.pad(a, ((0, missing), (0, 0))), report


def _dropped(info: MergeInfo) -> tuple[tuple[Dropped, ...], tuple[Dropped, ...]]:
    """The components of task and domain that are not kept."""
    sides: tuple[tuple[NDArray[np.bool_], Doubles, Doubles], ...] = (
        (info["kept_task"], info["strengths_task"], info["cosines"].min(axis=1)),
        (info["kept_domain"], info["strengths_domain"], info["cosines"].min(axis=0)),
    )
    task, domain = (
        tuple(
            Dropped(number=int(i), strength=float(strengths[i]), cosine=float(lowest[i])) for i in np.flatnonzero(~kept)
        )
        for kept, strengths, lowest in sides
    )
    return task, domain
