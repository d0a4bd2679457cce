"""Unlearning on a frozen checkpoint: from the lines of two files to an adapter and its report.

A run that broke off goes on where it was, and gives the same bytes as one that did not.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from enginewright.exporters.methods.lora.write_adapter import write_adapter
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.nsru.adapted_model import AdaptedModel, ProjectedAdapter, find_projections
from enginewright.exporters.methods.nsru.response_tokens import ResponseTokens
from enginewright.exporters.methods.nsru.retained_inputs import ObservedInputs, observe_inputs, reader_of
from enginewright.exporters.methods.nsru.unlearn_options import SMALL, UnlearnOptions
from enginewright.exporters.methods.nsru.unlearn_report import check_projection, describe_modules, write_report
from enginewright.exporters.methods.nsru.unlearn_steps import Unlearning
from enginewright.exporters.methods.unfinished_run import unfinished_run
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime.errors import ExportError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class UnlearnTexts:
    """The answers of both files as tokens; the command creates it.

    undesired, safe: of the forget file, the answer of each prompt and the one in its place.
    retain: of the retain file.
    templated: how many safe answers are the template's.
    """

    undesired: tuple[ResponseTokens, ...]
    safe: tuple[ResponseTokens, ...]
    retain: tuple[ResponseTokens, ...]
    templated: int

    @property
    def by_kind(self) -> dict[str, Sequence[ResponseTokens]]:
        """The sequences by kind of answer."""
        return {"undesired": self.undesired, "safe": self.safe, "retain": self.retain}


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """The sizes that the options leave to the model; `_sizes` creates it."""

    layers: int
    rank: int
    most: int | None


def unlearn(model: str, texts: UnlearnTexts, output: Path, options: UnlearnOptions) -> dict[str, Any]:
    """Train adapters, write them to `output` as PEFT does, and return the report that lies next to them.

    Raises:
        ExportError: there is nothing to forget or to retain, `output` holds something else, or a loss is not finite.
        UnsupportedError: the model has no projections of the names, or stores them as codes.
    """
    for name, kind in (("--forget", texts.undesired), ("--retain", texts.retain)):
        if not kind:
            raise ExportError(f"{name}: got no lines, expected one or more")
    checkpoint = open_checkpoint(model)
    request = {"model": hash_of(checkpoint), "texts": _hash(texts), "options": dataclasses.asdict(options)}
    with unfinished_run(output, request) as folder:
        return _train(model, checkpoint, texts, output, folder, options)


def _train(
    model: str, checkpoint: Checkpoint, texts: UnlearnTexts, output: Path, folder: Path, options: UnlearnOptions
) -> dict[str, Any]:
    """Train with what an earlier run left in `folder`, and write adapter and report."""
    reference = load_reference(checkpoint, ())
    sizes = _sizes(reference, options)
    projections = find_projections(reference, sizes.layers, options.modules)
    _refuse_codes(checkpoint, reference, projections)
    adapted = AdaptedModel(reference, projections)
    inputs = observe_inputs(adapted, texts.by_kind, folder, options, sizes.most)
    adapted.adapt(_adapters(projections, inputs, sizes.rank, options))
    run = Unlearning(adapted, texts.by_kind, inputs, options, folder)
    run.run()
    check_projection(adapted)
    factors = {name: (each.b.detach(), each.effective.detach()) for name, each in adapted.adapters.items()}
    write_adapter(output, factors, base=model, alpha=2 * sizes.rank)
    given = {
        **dataclasses.asdict(options),
        "modules": list(options.modules),
        "layers": sizes.layers,
        "rank": sizes.rank,
    }
    report = {
        "model": checkpoint.name,
        "options": given,
        "forget": len(texts.undesired),
        "retain": len(texts.retain),
        "safe_from_template": texts.templated,
        "answers_cut": {kind: sum(each.is_cut for each in own) for kind, own in texts.by_kind.items()},
        "lower_blocks_once": inputs.states is not None,
        "modules": describe_modules(adapted, inputs),
        "curves": run.curves,
    }
    write_report(output, report)
    return report


def _sizes(model: PreTrainedModel, options: UnlearnOptions) -> _Sizes:
    """The options' sizes, and for those that they leave open the paper's, or smaller ones for a small model."""
    config = model.config.get_text_config()
    count, is_small = int(config.num_hidden_layers), int(config.hidden_size) < SMALL
    if options.layers is not None and options.layers > count:
        raise ExportError(f"--layers: got {options.layers}, expected at most {count}, the model's blocks")
    layers = options.layers or min(16, -(-count // 2) if is_small else count)
    most = options.most if options.most or is_small else 128
    return _Sizes(layers=layers, rank=options.rank or (16 if is_small else 64), most=most)


def _refuse_codes(checkpoint: Checkpoint, model: PreTrainedModel, projections: dict[str, nn.Linear]) -> None:
    """Raise UnsupportedError where the checkpoint stores a weight that is to be adapted as codes."""
    weights = bind_parameters(checkpoint, model, restored="")
    for name in projections:
        weight = weights[f"{name}.weight"]
        if weight.quantized is not None or weight.stored is not None:
            raise UnsupportedError(
                f"{checkpoint.path}: {name}.weight is quantised, expected numbers: an adapter that is merged into codes has to "
                "be rounded with them, which undoes small changes; write the model as numbers first (enginewright "
                "export-checkpoint), train on that, and quantise the merged model"
            )


def _adapters(
    projections: dict[str, nn.Linear], inputs: ObservedInputs, rank: int, options: UnlearnOptions
) -> dict[str, ProjectedAdapter]:
    names = list(projections)
    made = {}
    for number, (name, layer) in enumerate(projections.items()):
        basis = inputs.inputs[reader_of(name, names)].basis
        basis = basis if options.is_projected else basis[:, :0]
        made[name] = ProjectedAdapter(layer, rank, 2.0, basis, seed=options.seed * 10_007 + number)
    return made


def _hash(texts: UnlearnTexts) -> str:
    digest = hashlib.sha256()
    for kind, own in texts.by_kind.items():
        digest.update(f"{kind} {[(each.ids, each.prompt, each.query_last) for each in own]}\n".encode())
    return digest.hexdigest()
