"""CLP: adds heads that guess the tokens after the next one, and a classifier that says how many of the guesses to emit.

An engine with CLP has these additions, for the runtime's decoder of kind `multi_token`:

    decoder graph, outputs in addition to `logits` and `greedy_tokens`:
        clp_tokens  int64 [N, k]   of each sampled row: greedy_tokens, then the heads' tokens, then -1
        clp_counts  int64 [N]      1 + L: how many of them are emitted, 1 .. k; 1 where greedy_tokens is -1
    manifest:
        decoding    {"kind": "multi_token", "k": k, "tau": tau, "verify": false}

The graph gets no new inputs. All emitted tokens enter the next step in order: 1 + L new tokens of the row, all of them
sampled. So the `greedy_tokens` of each shows whether the model would have chosen the extra token after it.

With `verify` false every extra token is kept, and the agreement is only counted. clp_counts is then 1 except for the last
token of a row, because only that token's guesses are used. With `verify` true the runtime drops the first extra token that
differs and all after it, and goes on with the guesses that follow the last token it keeps. Where a request samples, or
something changes its logits, the runtime drops the extra tokens.

Source: Collocation-Length Prediction, arXiv 2606.10935; `plugins/oracles/clp_emit.py` defines the emission.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from enginewright.exporters.methods.anchors import Anchors
from enginewright.exporters.methods.clp.head_set import HeadSet, load_tensor, read_head_set
from enginewright.exporters.methods.clp.tuners import TUNERS
from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.tolerance import Tolerance
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.block_codes import quantize_rows
from enginewright.exporters.weights.weight import Weight
from enginewright.plugins.ops.clp_emit import CLP_EMIT
from enginewright.runtime.errors import ExportError

KIND = "multi_token"
OUTPUTS = ("clp_tokens", "clp_counts")
ACTIVATIONS = {"gelu": 0, "silu": 1}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The heads, and the rule for how many tokens are emitted; `parse_method` creates it.

    heads: the directory that `enginewright tune clp` wrote.
    tau: no extra tokens are emitted where the likeliest length is less likely than this.
    k: tokens of one emission, the backbone's included; None: as many as there are heads for.
    storage: the type in which the heads' output matrices are stored.
    verify: whether the runtime checks the extra tokens, so that all tokens are those of greedy decoding.

    Raises:
        ExportError: a value that is not known or out of range.
    """

    heads: str
    tau: float = 0.3
    k: int | None = None
    storage: Literal["float32", "int8"] = "float32"
    verify: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ExportError(
                f"clp: got tau={self.tau}, expected more than 0 and at most 1; the authors use 0.3 to 0.9"
            )
        if self.k is not None and self.k < 2:
            raise ExportError(f"clp: got k={self.k}, expected 2 or more; without the method one token is emitted")
        if self.storage not in ("float32", "int8"):
            raise ExportError(f"clp: got storage={self.storage!r}, expected float32 or int8")


def check_model(config: Config, checkpoint: Checkpoint) -> None:
    """Raise ExportError unless the heads were trained on this checkpoint, and all their numbers are finite."""
    heads, model = _read(config), checkpoint.config
    for name in ("hidden_size", "vocab_size"):
        got, expected = getattr(heads.shape, name), int(getattr(model, name))
        if got != expected:
            raise ExportError(
                f"clp: {config.heads}: got heads for {name} {got}, expected {expected} as {checkpoint.name} has; they were "
                f"trained on {heads.backbone.name}"
            )
    if (found := hash_of(checkpoint)) != heads.backbone.sha256:
        raise ExportError(
            f"clp: {config.heads}: got heads trained on {heads.backbone.name} ({heads.backbone.sha256[:12]}), expected "
            f"{checkpoint.name} ({found[:12]}): the weights or the config's depth_attention differ; train heads with "
            "`enginewright tune clp`"
        )
    try:  # now, because small tensors are written as parts of the graph, and an error there loses its reason
        for name in heads.shape.tensors():
            load_tensor(Path(config.heads).expanduser(), name)
    except ExportError as e:
        raise ExportError(f"clp: {e}") from e


def choose_decoding(config: Config, decoding: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest's decoding; ExportError where the heads cannot be read or are too few for k."""
    return {"kind": KIND, "k": _tokens(config, _read(config)), "tau": config.tau, "verify": config.verify}


def extend_graph(config: Config, anchors: Anchors) -> None:
    """Add ClpEmit with the heads' weights. It reads the states of the sampled rows, which the output projection reads, too."""
    heads = _read(config)
    k = _tokens(config, heads)
    values = {name: anchors.add_weight(f"clp.{name}", weight) for name, weight in _weights(config, heads, k).items()}
    values["hidden"] = anchors.sampled_states()
    values["greedy"] = anchors.greedy_tokens()
    if not config.verify:  # extra tokens are kept, so only the guesses after a row's last token are needed
        values |= {name: anchors.input(name) for name in ("sample_rows", "query_starts")}
    attributes = {
        "k": k,
        "tau": config.tau,
        "activation": ACTIVATIONS[heads.activation],
        "residual": int(heads.residual),
    }
    tokens, counts = anchors.add_op(CLP_EMIT, values, attributes, OUTPUTS)
    rows = values["greedy"].shape
    assert rows is not None
    anchors.add_output(OUTPUTS[0], tokens, ir.DataType.INT64, (rows[0], k))
    anchors.add_output(OUTPUTS[1], counts, ir.DataType.INT64, (rows[0],))


def tolerance(config: Config, allowed: Tolerance) -> Tolerance:
    """Return a tolerance without greedy tokens where the runtime keeps guesses that the model would not have chosen."""
    return allowed if config.verify else dataclasses.replace(allowed, greedy=False)


def _read(config: Config) -> HeadSet:
    try:
        return read_head_set(Path(config.heads).expanduser())
    except ExportError as e:
        raise ExportError(f"clp: {e}") from e


def _tokens(config: Config, heads: HeadSet) -> int:
    """The number of tokens of one emission."""
    if config.k is not None and config.k > heads.shape.k:
        raise ExportError(
            f"clp: got k={config.k}, expected at most {heads.shape.k}: {config.heads} has {heads.shape.extra} heads"
        )
    return config.k or heads.shape.k


def _weights(config: Config, heads: HeadSet, k: int) -> dict[str, Weight]:
    """The weights of the node ClpEmit, by the names of its inputs."""
    root, sizes = Path(config.heads).expanduser(), heads.shape.tensors()

    def one(name: str) -> Weight:
        return Weight(shape=sizes[name], dtype=ir.DataType.FLOAT, load=lambda: load_tensor(root, name))

    def stacked(name: str) -> Weight:
        names = [f"heads.{j}.{name}" for j in range(k - 1)]
        shape = (k - 1, *sizes[names[0]])
        return Weight(
            shape=shape, dtype=ir.DataType.FLOAT, load=lambda: np.stack([load_tensor(root, n) for n in names])
        )

    weights = {f"classifier_{part}": one(f"classifier.{part}") for part in ("weight", "bias")}
    weights |= {f"up_{part}": stacked(f"up.{part}") for part in ("weight", "bias")}
    weights["out_bias"] = stacked("out.bias")
    out = stacked("out.weight")
    if config.storage == "float32":
        return weights | {"out_weight": out}
    codes = out.derive(out.shape, lambda x: quantize_rows(x)[0], ir.DataType.INT8)
    scales = out.derive(out.shape[:-1], lambda x: quantize_rows(x)[1])
    return weights | {"out_codes": codes, "out_scales": scales}


METHOD = Method(
    name="clp",
    summary="several tokens a step from extra heads",
    paper="2606.10935",
    config=Config,
    choose_decoding=choose_decoding,
    check_model=check_model,
    extend_graph=extend_graph,
    tolerance=tolerance,
    tuners=TUNERS,
)
