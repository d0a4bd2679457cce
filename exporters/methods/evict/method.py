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
from enginewright.exporters.methods.evict.graphs import (
    compact_graph,
    encode_graph,
    exact_compact_graph,
    governed,
    scores_graph,
)
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

MARK_CHANNELS = {"mass": 1, "recurrence": 2}
"""The kinds of MarkTokens, in its order, with the numbers that they keep of each token."""
DRAFTS = 7  # further tokens of a step that may be taken back, without any loss of the queries that scores need


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the method.

    score: the rule by which tokens are scored: rkv, snapkv, snapkv-prompt, tova, h2o, lazy, streaming or random.
    budget: tokens that each KV head keeps, on average over heads and layers.
    interval: tokens between two evictions.
    window: newest tokens that always stay, and whose queries make the scores; 1 for tova.
    sinks: first tokens of a request that always stay; None: 4 for streaming, 0 for the other scores.
    kernel: neighbours over which a score is pooled, an odd number; None: 5 for snapkv-prompt, 7 for the other scores.
    mix: weight of the importance in R-KV's scores; the rest is that of the redundancy.
    alpha: least probability that counts as a hit in the score lazy.
    allocation: how budgets are shared: uniform, pyramid, ada or reasonalloc.
    curve: for reasonalloc, the file of the layers' demand that `enginewright tune reasonalloc` has made.
    layers: whether reasonalloc shares the budget among layers, by that file.
    heads: whether reasonalloc shares a layer's budget among its heads, by their scores.
    strict: whether reasonalloc's bounds hold exactly.
    score_norm: what reasonalloc does to scores before it compares heads: none; times_len multiplies them by the head's length.
    prefill: whole: a prompt stays until it is complete; chunk: its tokens are evicted like those that are generated.
    granularity: what leaves: token; tile: whole tiles of 128 tokens, by the mean of their scores; record: tokens until they are
        encoded, then their tile as a whole. With kvarn it is one of the last two.
    """

    score: str = "rkv"
    budget: int = 512
    interval: int = 128
    window: int | None = None
    sinks: int | None = None
    kernel: int | None = None
    mix: float = 0.1
    alpha: float = 1e-4
    allocation: str = "uniform"
    curve: str | None = None
    layers: bool = True
    heads: bool = True
    strict: bool = False
    score_norm: Literal["none", "times_len"] = "none"
    prefill: Literal["whole", "chunk"] = "whole"
    granularity: Literal["token", "tile", "record"] = "token"

    def __post_init__(self) -> None:
        by_curve = self.allocation == "reasonalloc" and self.layers
        if by_curve and self.curve is None:
            raise ValueError(
                "curve: got none with allocation reasonalloc, expected the file that `enginewright tune reasonalloc` makes, or "
                "layers=false"
            )
        if self.curve is not None and not by_curve:
            raise ValueError(f"curve: got {self.curve}, expected none without allocation=reasonalloc and layers=true")
        self.policy()

    def policy(self, demand: tuple[float, ...] = ()) -> EvictConfig:
        """Return the runtime's options, with the layers' demand; ValueError for those that do not go together."""
        is_tova = self.score == "tova"
        return EvictConfig(
            score=self.score,
            budget=self.budget,
            interval=self.interval,
            window=(1 if is_tova else 8) if self.window is None else self.window,
            sinks=(4 if self.score == "streaming" else 0) if self.sinks is None else self.sinks,
            kernel=(5 if self.score == "snapkv-prompt" else 7) if self.kernel is None else self.kernel,
            mix=self.mix,
            alpha=self.alpha,
            allocation=self.allocation,
            demand=demand,
            heads=self.heads,
            strict=self.strict,
            score_norm=self.score_norm,
            prefill=self.prefill,
            granularity=self.granularity,
        )


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
    """Add the policy to the format, and what it reads to the graph."""
    if cache.policy:
        raise ExportError(
            f"evict: got a cache with the policy {cache.policy['kind']!r}, expected none; apply one policy alone"
        )
    if cache.sees_later:
        raise UnsupportedError(
            "evict: got a model whose tokens see later ones, expected one that decodes token after token"
        )
    demand = () if config.curve is None else tuple(open_curve(Path(config.curve)).shares.values())
    policy = config.policy(demand)
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
    """Refuse a curve that was made of another model."""
    if config.curve is not None:
        read_curve(Path(config.curve), sha256=hash_of(checkpoint), layers=int(checkpoint.config.num_hidden_layers))


def more_graphs(config: Config, anchors: Anchors) -> dict[str, ir.Model]:
    """Return the graph that moves tokens, and the one that scores them if scores are made of queries."""
    score, policy = SCORES[config.score], config.policy()
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
        graphs[SCORES_GRAPH] = scores_graph(anchors.graph, score, window=policy.window)
    return graphs


def _as_json(policy: EvictConfig) -> dict[str, Any]:
    """The options that are not the defaults, as the manifest has them."""
    defaults = EvictConfig()
    given = dataclasses.asdict(policy)
    kept = {
        name: value for name, value in given.items() if value != getattr(defaults, name) or name in ("score", "budget")
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


METHOD = Method(
    name="evict",
    summary="a cache of fixed size: tokens leave by their scores",
    paper="2505.24133",
    config=Config,
    extend_cache=extend_cache,
    check_model=check_model,
    more_graphs=more_graphs,
)
