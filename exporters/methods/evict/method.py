"""The method `evict`: writes a cache policy into the engine, and the graphs by which the runtime follows it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch

from enginewright.exporters.capture.cache_formats import AttentionCall, AttentionLayer, CacheFormat, Tensors
from enginewright.exporters.methods.anchors import Anchors
from enginewright.exporters.methods.evict.duo_command import TUNER
from enginewright.exporters.methods.evict.graphs import (
    compact_graph,
    encode_graph,
    exact_compact_graph,
    governed,
    kv_heads,
    scores_graph,
)
from enginewright.exporters.methods.evict.head_gates import check_head_gates, open_head_gates
from enginewright.exporters.methods.evict.token_gates import ACTIVATION, add_gates, check_token_gates
from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.reasonalloc.curve import open_curve, read_curve
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime.artifact.decoder_graph import (
    COMPACT_GRAPH,
    ENCODE_GRAPH,
    MARKS,
    QUERIES,
    SCORES_GRAPH,
    TILES,
    pool_name,
)
from enginewright.runtime.artifact.manifest import CacheLayer
from enginewright.runtime.cache.policies import whole_records, whole_tiles
from enginewright.runtime.cache.policies.evict import EvictConfig
from enginewright.runtime.cache.policies.token_scores import SCORES
from enginewright.runtime.cache.policies.whole_records import EXACT_TILES
from enginewright.runtime.errors import ExportError, UnsupportedError

MARK_CHANNELS = {"mass": 1, "recurrence": 2, "given": 1}
"""The kinds of MarkTokens, in its order, with the numbers that they keep of each token."""
DRAFTS = 7  # further tokens of a step that may be taken back, without any loss of the queries that scores need


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the method.

    score: the rule by which tokens are scored: rkv, snapkv, snapkv-prompt, tova, h2o, lazy, trim, streaming or random; None:
        streaming for duo, rkv for the other allocations.
    budget: tokens that each KV head keeps, on average over heads and layers; for duo, that each head keeps which does not keep
        all. None: 320 for duo, 512 for the other allocations.
    interval: tokens between two evictions.
    window: newest tokens that always stay, and whose queries make the scores; 1 for tova.
    sinks: first tokens of a request that always stay; None: 4 for streaming, 64 for that of duo, 0 for
        the other scores.
    kernel: neighbours over which a score is pooled, an odd number; None: 5 for snapkv-prompt, 7 for the other scores.
    mix: weight of the importance in R-KV's scores; the rest is that of the redundancy.
    alpha: least probability that counts as a hit in the score lazy.
    gates: for the score trim, the safetensors file of its gates, or a folder of such files.
    allocation: how budgets are shared: uniform, pyramid, ada, reasonalloc or duo.
    curve: for reasonalloc, the file of the layers' demand that `enginewright tune reasonalloc` has made.
    layers: whether reasonalloc shares the budget among layers, by that file.
    heads: whether reasonalloc shares a layer's budget among its heads, by their scores.
    strict: whether reasonalloc's bounds hold exactly.
    score_norm: what reasonalloc does to scores before it compares heads: none; times_len multiplies them by the head's length.
    head_gates: for duo, the file of the heads' gates that `enginewright tune duo` has made, or a .tsv of DuoAttention's authors.
    sparsity: for duo, the share of KV heads that do not keep all tokens: those with the smallest gates.
    prefill: whole: a prompt stays until it is complete; chunk: its tokens are evicted like those that are generated.
    granularity: what leaves: token; tile: whole tiles of 128 tokens, by the mean of their scores; record: tokens until they are
        encoded, then their tile as a whole. With kvarn it is one of the last two.
    """

    score: str | None = None
    budget: int | None = None
    interval: int = 128
    window: int | None = None
    sinks: int | None = None
    kernel: int | None = None
    mix: float = 0.1
    alpha: float = 1e-4
    gates: str | None = None
    allocation: str = "uniform"
    curve: str | None = None
    layers: bool = True
    heads: bool = True
    strict: bool = False
    score_norm: Literal["none", "times_len"] = "none"
    head_gates: str | None = None
    sparsity: float = 0.5
    prefill: Literal["whole", "chunk"] = "whole"
    granularity: Literal["token", "tile", "record"] = "token"

    def __post_init__(self) -> None:
        by_curve = self.allocation == "reasonalloc" and self.layers
        self._check_file("curve", by_curve, "allocation=reasonalloc and layers=true", "tune reasonalloc` makes")
        self._check_file("head_gates", self.allocation == "duo", "allocation=duo", "tune duo` makes")
        if self.score == "trim" and self.gates is None:
            raise ValueError("gates: got none with score trim, expected the file of TRIM-KV's trained gates")
        if self.score != "trim" and self.gates is not None:
            raise ValueError(f"gates: got {self.gates}, expected none without score=trim")
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"sparsity: got {self.sparsity}, expected 0 to 1")
        self.policy()

    @property
    def scored(self) -> str:
        """The score, given or by default."""
        return self.score or ("streaming" if self.allocation == "duo" else "rkv")

    def policy(self, demand: tuple[float, ...] = (), whole: tuple[tuple[int, ...], ...] = ()) -> EvictConfig:
        """Return the runtime's options; ValueError for those that do not go together.

        demand: of the layers, by the file `curve`.
        whole: the heads that keep all tokens, by the file `head_gates`.
        """
        score, is_duo = self.scored, self.allocation == "duo"
        sinks = 0 if score != "streaming" else 64 if is_duo else 4
        return EvictConfig(
            score=score,
            budget=(320 if is_duo else 512) if self.budget is None else self.budget,
            interval=self.interval,
            window=(1 if score == "tova" else 8) if self.window is None else self.window,
            sinks=sinks if self.sinks is None else self.sinks,
            kernel=(5 if score == "snapkv-prompt" else 7) if self.kernel is None else self.kernel,
            mix=self.mix,
            alpha=self.alpha,
            allocation=self.allocation,
            demand=demand,
            heads=self.heads,
            strict=self.strict,
            score_norm=self.score_norm,
            whole=whole,
            prefill=self.prefill,
            granularity=self.granularity,
        )

    def _check_file(self, name: str, wanted: bool, options: str, made: str) -> None:
        """Raise ValueError unless the file of an option is given where it is wanted, and only there."""
        given = getattr(self, name)
        if wanted and given is None:
            otherwise = ", or layers=false" if name == "curve" else ""
            raise ValueError(f"{name}: got none with {options}, expected the file that `enginewright {made}{otherwise}")
        if given is not None and not wanted:
            raise ValueError(f"{name}: got {given}, expected none without {options}")


@dataclass(frozen=True)
class EvictingCache:
    """A cache format whose graph also keeps what the policy reads: the newest queries, or marks of the tokens.

    inner: the format of keys and values.
    config: of the policy.
    """

    inner: CacheFormat
    config: EvictConfig
    sees_later: bool = False
    policy: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The inner format's kind: attention reads the tiles as ever."""
        return self.inner.kind

    @property
    def bits(self) -> int:
        """The inner format's width of an element."""
        return self.inner.bits

    @property
    def token_inputs(self) -> dict[str, str]:
        """The inner format's inputs."""
        return self.inner.token_inputs

    def describe(self, layer: AttentionLayer) -> CacheLayer:
        """Return the inner format's layer, with the queries or marks that it keeps if it has no window."""
        found = self.inner.describe(layer)
        if layer.window:
            return found
        score = SCORES[self.config.score]
        if found.exact_bytes:
            check_encoded(self.config, f"the layer {layer.index} with tiles that are encoded")
        elif self.config.granularity == "record":
            raise UnsupportedError(
                f"evict: got granularity=record and the layer {layer.index}, whose tiles are not encoded, expected kvarn in every "
                "layer without a window; apply kvarn without exact_layers, or evict:granularity=token without kvarn"
            )
        return dataclasses.replace(
            found,
            exact_tiles=EXACT_TILES if self.config.granularity == "record" else found.exact_tiles,
            query_heads=layer.query_heads if score.reads_queries else 0,
            held_queries=self.config.window + DRAFTS if score.reads_queries else 0,
            marks=MARK_CHANNELS[score.marks] if score.marks else 0,
        )

    def attend(self, call: AttentionCall, tables: Tensors, pools: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Call the inner format's attention, then the ops that keep queries or marks."""
        output, written = self.inner.attend(call, tables, pools)
        queries, marks, tiles = (pool_name(port, call.layer) for port in (QUERIES, MARKS, TILES))
        if queries in pools:
            written[queries] = torch.ops.enginewright.hold_queries(
                query=call.query,
                ring=pools[queries],
                query_starts=tables["query_starts"],
                slots=tables["slots"],
                position_ids=tables["position_ids"],
            )
        if marks in pools:
            written[marks] = torch.ops.enginewright.mark_tokens(
                query=call.query,
                tiles=written[tiles],
                query_starts=tables["query_starts"],
                kv_lens=tables["kv_lens"],
                tile_table=tables["tile_table"],
                position_ids=tables["position_ids"],
                marks=pools[marks],
                sinks=call.sinks,
                values=None,  # `extend_graph` gives those of trim, when the states before attention are known
                layer=call.layer,
                kv_heads=call.key.shape[1],
                scale=call.scale,
                softcap=call.softcap,
                kind=list(MARK_CHANNELS).index(SCORES[self.config.score].marks or ""),
                alpha=self.config.alpha,
                kv_bits=self.bits,
            )
        return output, written


def check_encoded(config: EvictConfig, got: str) -> None:
    """Refuse what tiles that are encoded do not allow; got: the cache, for the message."""
    if config.granularity == "token":
        raise UnsupportedError(
            f"evict: got {got}, so that tokens cannot leave one by one, expected granularity=tile, by which whole tiles "
            "leave, or record, which chooses tokens before they are encoded; apply evict:granularity=tile, or build without kvarn"
        )
    if SCORES[config.score].marks:
        kept = ", ".join(name for name, each in SCORES.items() if not each.marks)
        raise UnsupportedError(
            f"evict: got {got}, and score={config.score}, which marks tokens in tiles that are not, expected one of {kept}; "
            "apply evict with such a score, or build without kvarn"
        )


def extend_cache(config: Config, cache: CacheFormat) -> CacheFormat:
    """Add the policy to the format, and what it reads to the graph; gates come with `extend_graph`."""
    if cache.policy:
        raise ExportError(
            f"evict: got a cache with the policy {cache.policy['kind']!r}, expected none; apply one policy alone"
        )
    if cache.sees_later:
        raise UnsupportedError(
            "evict: got a model whose tokens see later ones, expected one that decodes token after token"
        )
    demand = () if config.curve is None else tuple(open_curve(Path(config.curve)).shares.values())
    whole = () if config.head_gates is None else open_head_gates(Path(config.head_gates)).whole_heads(config.sparsity)
    policy = config.policy(demand, whole)
    if cache.kind == "kvarn":
        check_encoded(policy, "a kvarn cache, whose tiles are encoded")
    elif policy.granularity == "record":
        raise UnsupportedError(
            f"evict: got granularity=record and a {cache.kind} cache, whose tiles are not encoded, expected kvarn; apply kvarn as "
            "well, or evict:granularity=token"
        )
    try:
        check = {"tile": whole_tiles.check_sizes, "record": whole_records.check_sizes}.get(policy.granularity)
        if check is not None:
            check(policy, TILE_TOKENS)
    except ValueError as e:
        raise ExportError(f"evict: {e}") from e
    return EvictingCache(cache, policy, policy={"kind": "evict", **_as_json(policy)})


def check_model(config: Config, checkpoint: Checkpoint) -> None:
    """Refuse a curve or gates that were made of another model."""
    layers = int(checkpoint.config.num_hidden_layers)
    if config.curve is not None:
        read_curve(Path(config.curve), sha256=hash_of(checkpoint), layers=layers)
    if config.head_gates is not None:
        path = Path(config.head_gates)
        check_head_gates(path, open_head_gates(path), sha256=hash_of(checkpoint), layers=layers)
    if config.gates is not None:
        check_token_gates(
            Path(config.gates),
            hidden_size=int(checkpoint.config.hidden_size),
            layers=layers,
            activation=_activation(checkpoint),
        )


def _activation(checkpoint: Checkpoint) -> str:
    """The activation of a model's feed-forward parts, which some families' configs call by another name."""
    names = ("hidden_activation", "hidden_act")
    return next((str(found) for name in names if (found := getattr(checkpoint.config, name, None))), ACTIVATION)


def extend_graph(config: Config, anchors: Anchors) -> None:
    """Add the gates of trim, and check that those of duo are of the graph's heads."""
    if config.gates is not None:
        add_gates(anchors, Path(config.gates))
    if config.head_gates is not None:
        found = [len(own) for own in open_head_gates(Path(config.head_gates)).of_layers]
        heads = [kv_heads(attention) for attention in governed(anchors.graph)]
        if found != heads:
            raise ExportError(
                f"{config.head_gates}: got gates of {found} KV heads in {len(found)} layers, expected {heads} in the "
                f"{len(heads)} without a window; make them by `enginewright tune duo`"
            )


def more_graphs(config: Config, anchors: Anchors) -> dict[str, ir.Model]:
    """Return the graph that moves tokens, and the one that scores them if scores are made of queries."""
    score, window = SCORES[config.scored], config.policy().window
    if next(governed(anchors.graph), None) is None:
        raise UnsupportedError(
            "evict: got a model whose every layer has a window, and frees its tiles by itself, expected a layer that keeps all "
            "tokens; build without evict"
        )
    graphs = {}
    if config.granularity == "token":
        graphs[COMPACT_GRAPH] = compact_graph(anchors.graph, has_marks=score.marks is not None)
    if config.granularity == "record":
        graphs[COMPACT_GRAPH], graphs[ENCODE_GRAPH] = exact_compact_graph(anchors.graph), encode_graph(anchors.graph)
    if score.reads_queries:
        graphs[SCORES_GRAPH] = scores_graph(anchors.graph, score, window=window)
    return graphs


def _as_json(policy: EvictConfig) -> dict[str, Any]:
    """The options that are not the defaults, as the manifest has them."""
    defaults = EvictConfig()
    given = dataclasses.asdict(policy)
    kept = {
        name: value for name, value in given.items() if value != getattr(defaults, name) or name in ("score", "budget")
    }
    return {name: _as_lists(value) for name, value in kept.items()}


def _as_lists(value: Any) -> Any:
    return [_as_lists(each) for each in value] if isinstance(value, tuple) else value


METHOD = Method(
    name="evict",
    summary="a cache of fixed size: tokens leave by their scores",
    paper="2505.24133",
    config=Config,
    extend_cache=extend_cache,
    check_model=check_model,
    extend_graph=extend_graph,
    more_graphs=more_graphs,
    tuners=(TUNER,),
)
