"""Trains CLP's extra heads and their length classifier on a frozen backbone.

It computes the backbone's states once (`states.py`) and trains the heads on most texts. Then it makes labels and trains the
classifier, on texts that the heads did not see, and reports on texts that neither saw. A run that was stopped goes on where
it was.

Source: arXiv 2606.10935 section IV-B and table VIII, with the classifier trained on a held-out slice of the training
texts: the paper trains it on its evaluation data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from enginewright.exporters.methods.clp.backbone_states import States, TokenSequence, compute_states
from enginewright.exporters.methods.clp.head_set import (
    MOST_TOKENS,
    Backbone,
    HeadSet,
    HeadShape,
    write_head_set,
)
from enginewright.exporters.methods.clp.heads import (
    Heads,
    backbone_targets,
    classifier_loss,
    data_targets,
    length_labels,
)
from enginewright.exporters.methods.clp.report import HeadsReport, measure
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.unfinished_run import unfinished_run
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime.errors import ExportError

SAVE_SECONDS = 30.0  # between two saves of the heads in training
LEAST_TEXTS = 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the training, with the paper's defaults; the command `tune` creates it.

    k: tokens of one emission, of which the backbone gives the first.
    label_source: whether the classifier counts a head as right when it gives the text's token (data) or the backbone's.
    head_hidden: width of a head's hidden layer; None: half the backbone's.
    classes: of the classifier; None: k.
    epochs: over the texts, for the heads.
    rate: learning rate of the heads.
    weight_decay: of the heads.
    batch: texts in one step for the heads.
    classifier_epochs: over the texts that the heads do not see, for the classifier.
    classifier_rate: learning rate of the classifier, at the start of its schedule.
    classifier_weight_decay: of the classifier.
    classifier_batch: positions in one step for the classifier.
    held_out: share of the texts that the heads do not see. The classifier learns from one half of them, and the report is
        about the other.
    seed: of the weights, and of the order of texts.

    Raises:
        ExportError: a value that is not known or out of range.
    """

    k: int = 3
    label_source: Literal["data", "backbone"] = "data"
    head_hidden: int | None = None
    classes: int | None = None
    epochs: int = 15
    rate: float = 2e-4
    weight_decay: float = 0.01
    batch: int = 8
    classifier_epochs: int = 20
    classifier_rate: float = 1e-3
    classifier_weight_decay: float = 1e-4
    classifier_batch: int = 4096
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.k <= MOST_TOKENS:
            raise ExportError(f"--k: got {self.k}, expected 2 to {MOST_TOKENS}")
        if self.label_source not in ("data", "backbone"):
            raise ExportError(f"--label-source: got {self.label_source!r}, expected data or backbone")
        if not 0 < self.held_out < 1:
            raise ExportError(f"--held-out: got {self.held_out}, expected more than 0 and less than 1")
        for name in ("epochs", "batch", "classifier_epochs", "classifier_batch"):
            if getattr(self, name) < 1:
                raise ExportError(f"--{name.replace('_', '-')}: got {getattr(self, name)}, expected 1 or more")
        for name in ("rate", "classifier_rate"):
            if not getattr(self, name) > 0:
                raise ExportError(f"--{name.replace('_', '-')}: got {getattr(self, name)}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class _Split:
    """The numbers of the texts for the heads, for the classifier and for the report; `_split` creates it."""

    heads: NDArray[np.int64]
    classifier: NDArray[np.int64]
    report: NDArray[np.int64]


def tune(model: str, texts: Sequence[TokenSequence], output: Path, options: Options) -> HeadsReport:
    """Train on `texts`, write the head set to `output`, and return a report on texts that it has not seen.

    Raises:
        ExportError: there are too few texts, or `output` holds something else.
    """
    if len(texts) < LEAST_TEXTS:
        raise ExportError(f"--data: got {len(texts)} texts, expected {LEAST_TEXTS} or more; choose a smaller --length")
    checkpoint = open_checkpoint(model)
    digest = hash_of(checkpoint)
    request = {"backbone": digest, "texts": _hash(texts), "options": dataclasses.asdict(options)}
    with unfinished_run(output, request) as folder:
        return _train(checkpoint, digest, texts, output, folder, options)


def _train(
    checkpoint: Checkpoint,
    digest: str,
    texts: Sequence[TokenSequence],
    output: Path,
    folder: Path,
    options: Options,
) -> HeadsReport:
    """Train with what an earlier run left in `folder`, and write head set and report."""
    backbone = load_reference(checkpoint, ())  # the model that engines are checked against, mixing over depth included
    states = compute_states(backbone, texts, folder)
    shape = _shape(backbone, options)
    own = np.concatenate([data_targets(text.ids, shape.extra)[text.first :] for text in texts])
    bounds = zip(states.bounds[:-1], states.bounds[1:], strict=True)
    chosen = np.concatenate([backbone_targets(states.best[begin:end], shape.extra) for begin, end in bounds])
    split = _split(len(texts), options)
    heads = _train_heads(shape, states, own, split.heads, folder, options)
    wanted = own if options.label_source == "data" else chosen
    classifier = _train_classifier(shape, heads, states, wanted, split.classifier, options)
    rows = states.rows(split.report)
    report = measure(
        heads, classifier, torch.from_numpy(states.states[rows]), own[rows], chosen[rows], options.label_source
    )
    tensors = {name: x.detach().numpy() for name, x in heads.state_dict().items()}
    tensors |= {f"classifier.{name}": x.detach().numpy() for name, x in classifier.state_dict().items()}
    training = {**dataclasses.asdict(options), "texts": len(texts), "positions": int(states.bounds[-1])}
    found = HeadSet(shape=shape, backbone=Backbone(name=checkpoint.name, sha256=digest), training=training)
    write_head_set(output, found, tensors)
    (output / "report.json").write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    return report


def _hash(texts: Sequence[TokenSequence]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(np.array([text.given, len(text.ids), *text.ids], np.int64).tobytes())
    return digest.hexdigest()


def _shape(model: PreTrainedModel, options: Options) -> HeadShape:
    vocab, hidden = model.get_output_embeddings().weight.shape  # type: ignore[no-untyped-call]
    return HeadShape(
        hidden_size=int(hidden),
        vocab_size=int(vocab),
        k=options.k,
        head_hidden=options.head_hidden or int(hidden) // 2,
        classes=options.classes or options.k,
    )


def _split(count: int, options: Options) -> _Split:
    order = np.random.default_rng([options.seed, 1]).permutation(count)
    kept = max(2, round(options.held_out * count))
    return _Split(heads=order[kept:], classifier=order[: kept // 2], report=order[kept // 2 : kept])


def _train_heads(
    shape: HeadShape,
    states: States,
    targets: NDArray[np.int64],
    texts: NDArray[np.int64],
    folder: Path,
    options: Options,
) -> Heads:
    """Train all heads together at a constant rate, from the step at which an earlier run stopped."""
    torch.manual_seed(options.seed)
    heads = Heads(shape)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=options.rate, weight_decay=options.weight_decay)
    in_epoch = -(-len(texts) // options.batch)
    total, saved = options.epochs * in_epoch, folder / "heads.pt"
    done = _resume(saved, heads, optimizer)
    last_save = time.monotonic()
    order = np.empty(0, np.int64)
    with tqdm(total=total, initial=done, desc="heads", unit="step", disable=None) as bar:
        for step in range(done, total):
            epoch, at = divmod(step, in_epoch)
            if at == 0 or not len(order):
                order = np.random.default_rng([options.seed, 2, epoch]).permutation(texts)
            rows = states.rows(order[at * options.batch : (at + 1) * options.batch])
            loss = _step(heads, optimizer, torch.from_numpy(states.states[rows]), torch.from_numpy(targets[rows]))
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            if time.monotonic() - last_save >= SAVE_SECONDS:
                _save(saved, step + 1, heads, optimizer)
                last_save = time.monotonic()
    _save(saved, total, heads, optimizer)
    return heads.eval()


def _step(heads: Heads, optimizer: torch.optim.Optimizer, states: torch.Tensor, targets: torch.Tensor) -> float:
    """Update the heads once, and return the loss."""
    optimizer.zero_grad()
    total = 0.0
    for loss in heads.losses(states, targets):
        if bool(torch.isfinite(loss)):  # a batch of texts too short for this head has none
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
    optimizer.step()
    return total


def _save(path: Path, step: int, heads: Heads, optimizer: torch.optim.Optimizer) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"step": step, "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}, partial)
    partial.replace(path)


def _resume(path: Path, heads: Heads, optimizer: torch.optim.Optimizer) -> int:
    """Load the heads and the optimizer of an earlier run, and return how many steps it did."""
    if not path.is_file():
        return 0
    saved = torch.load(path, weights_only=True)
    heads.load_state_dict(saved["heads"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _train_classifier(
    shape: HeadShape,
    heads: Heads,
    states: States,
    targets: NDArray[np.int64],
    texts: NDArray[np.int64],
    options: Options,
) -> torch.nn.Linear:
    """Make labels with the trained heads, then train the classifier on them."""
    rows = states.rows(texts)
    inputs = torch.from_numpy(states.states[rows])
    whole, labels = length_labels(heads.predict(inputs).numpy(), targets[rows])
    inputs, wanted = inputs[torch.from_numpy(whole)], torch.from_numpy(np.minimum(labels, shape.classes - 1))
    classifier = torch.nn.Linear(shape.hidden_size, shape.classes)
    fit_classifier(classifier, inputs, wanted, options)
    return classifier


def fit_classifier(classifier: torch.nn.Linear, states: torch.Tensor, labels: torch.Tensor, options: Options) -> None:
    """Minimise the classifier's cross-entropy, which is convex, with a cosine schedule of the rate.

    It starts with the frequencies of the lengths as biases and weights of 0. With few positions the batches are smaller, so
    that there are at least 32 in an epoch.
    """
    counts = torch.bincount(labels, minlength=classifier.out_features) + 1
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.copy_((counts / counts.sum()).log())
    size = max(1, min(options.classifier_batch, len(states) // 32))
    batches = -(-len(states) // size)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=options.classifier_rate, weight_decay=options.classifier_weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.classifier_epochs * batches)
    for epoch in tqdm(range(options.classifier_epochs), desc="classifier", unit="epoch", disable=None):
        order = np.random.default_rng([options.seed, 3, epoch]).permutation(len(states))
        for begin in range(0, len(states), size):
            rows = torch.from_numpy(order[begin : begin + size])
            optimizer.zero_grad()
            classifier_loss(classifier, states[rows], labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
