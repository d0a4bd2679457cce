"""The comparisons of the GPU benchmark: the kernels' calls, their sizes, and the targets that they must reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.kernels.gpu import baselines, calls
from benchmarks.kernels.gpu.baselines import Family
from benchmarks.kernels.gpu.calls import AttentionShape, HeadsShape, KernelCall, LinearShape, MixShape, SplitShape

BITS = ((4, 2), (4, 4), (2, 2))
Figure = Literal["ratio", "copy_share", "microseconds", "fraction"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """All sizes of the benchmark.

    The attention heads and layers are those of an 8B model; hidden size, vocabulary and extra heads those of a 0.5B model.
    """

    query_heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    layers: int = 32
    batches: tuple[int, ...] = (1, 16)
    contexts: tuple[int, ...] = (2048, 8192, 32768)
    prefill: int = 8192
    chunk: int = 512
    tokens: tuple[int, ...] = (1, 64, 4096)
    """Numbers of tokens for the calls that treat each token by itself."""
    hidden: int = 896
    vocab: int = 151_936
    k: int = 3
    emitting_rows: tuple[int, ...] = (1, 16)
    linears: tuple[tuple[int, int], ...] = ((896, 9728), (4864, 896), (4096, 28672), (14336, 4096))
    """Inputs and outputs of the feed-forward projections."""
    linear_rows: tuple[int, ...] = (1, 8)

    def attention(self, batch: int, held: int, new: int) -> AttentionShape:
        """The shape of an attention call with the model's heads."""
        heads = {"query_heads": self.query_heads, "kv_heads": self.kv_heads, "dim": self.dim}
        return AttentionShape(**heads, batch=batch, held=held, new=new)


FULL = Sizes()
QUICK = Sizes(contexts=(2048, 32768), tokens=(1, 4096), linears=((896, 9728), (14336, 4096)))


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound that a figure must keep.

    at_least: whether the bound is a lower one.
    """

    figure: Figure
    bound: float
    at_least: bool = True

    def is_met(self, value: float) -> bool:
        """Whether `value` keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        shown = f"{self.bound:g}" if self.figure in ("ratio", "microseconds") else f"{self.bound:.1%}"
        return f"{self.figure.replace('_', ' ')} {'>=' if self.at_least else '<='} {shown}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One kernel's call in a comparison.

    make: makes the call on a device.
    targets: the bounds that it must keep.
    """

    make: Callable[[str], KernelCall]
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Kernels' calls compared with a family of baselines; all of them are measured in turn.

    group: a name for `--only`.
    name: the size, for printed lines.
    entries: name -> a kernel's call.
    family: makes the baselines when they are needed, because torch's compiler is slow; its argument is `compiled`.
    operations: floating-point operations, if they and not the bytes are the limit.
    """

    group: str
    name: str
    entries: dict[str, Entry]
    family: Callable[[bool], Family] | None = None
    operations: int = 0


@dataclass(frozen=True, kw_only=True)
class FlushComparison:
    """The cost of completing a tile in every head of every layer, as a share of the decode steps that fill the tile.

    encoding, plain: make a call that completes and encodes its tiles, and the same call without encoding.
    attention: makes the call of a decode step at `context` tokens.
    """

    batch: int
    context: int
    layers: int
    encoding: Callable[[str], KernelCall] = field(repr=False)
    plain: Callable[[str], KernelCall] = field(repr=False)
    attention: Callable[[str], KernelCall] = field(repr=False)
    target: Target

    group = "flush"

    @property
    def name(self) -> str:
        """The size, for printed lines."""
        return f"batch {self.batch}, {self.layers} layers"


def comparisons(sizes: Sizes) -> Iterator[Comparison | FlushComparison]:
    """All comparisons at these sizes."""
    for batch in sizes.batches:
        for context in sizes.contexts:
            yield _decode(sizes, batch, context)
    yield from _prefills(sizes)
    for batch in sizes.batches:
        yield _flush(sizes, batch)
    yield from (_mix(sizes, tokens) for tokens in sizes.tokens)
    yield from (_emit(sizes, rows, length) for rows in sizes.emitting_rows for length in (0, sizes.k - 1))
    for size, outputs in sizes.linears:
        yield from (_linear(LinearShape(rows=rows, size=size, outputs=outputs)) for rows in sizes.linear_rows)
    yield from (_split(sizes, tokens) for tokens in sizes.tokens)
    yield from (_greedy(rows, sizes.vocab) for rows in sizes.emitting_rows)


def groups(sizes: Sizes) -> list[str]:
    """The names that `--only` takes."""
    return list(dict.fromkeys(comparison.group for comparison in comparisons(sizes)))


def _decode(sizes: Sizes, batch: int, context: int) -> Comparison:
    shape = sizes.attention(batch, context - 1, 1)
    entries = {"PagedAttention": Entry(make=lambda device: calls.paged_attention(device, shape), targets=(_RATIO_1,))}
    for bits in BITS:
        targets = _kvarn_targets(sizes, batch, context) if bits == (4, 2) else ()
        entries[f"KVarN k{bits[0]}v{bits[1]}"] = Entry(make=_kvarn(shape, bits), targets=targets)
    return Comparison(
        group="decode",
        name=f"batch {batch}, {context} tokens",
        entries=entries,
        family=lambda compiled: baselines.attention(shape, compiled=compiled),
    )


_RATIO_1 = Target(figure="ratio", bound=1.0)


def _kvarn_targets(sizes: Sizes, batch: int, context: int) -> tuple[Target, ...]:
    if (batch, context) == (max(sizes.batches), max(sizes.contexts)):
        return Target(figure="ratio", bound=2.5), Target(figure="copy_share", bound=0.6)
    return (_RATIO_1,) if (batch, context) == (min(sizes.batches), min(sizes.contexts)) else ()


def _kvarn(
    shape: AttentionShape, bits: tuple[int, int], encoded: tuple[int, int] | None = None
) -> Callable[[str], KernelCall]:
    return lambda device: calls.kvarn_attention(device, shape, bits, encoded)


def _prefills(sizes: Sizes) -> Iterator[Comparison]:
    whole, chunk = sizes.attention(1, 0, sizes.prefill), sizes.attention(1, sizes.prefill, sizes.chunk)
    paged = Entry(
        make=lambda device: calls.paged_attention(device, whole), targets=(Target(figure="ratio", bound=0.6),)
    )
    yield Comparison(
        group="prefill",
        name=f"{whole.new} tokens",
        entries={"PagedAttention": paged},
        family=lambda compiled: baselines.attention(whole, compiled=compiled),
        operations=whole.operations,
    )
    yield Comparison(
        group="prefill",
        name=f"{chunk.new} tokens after {chunk.held}",
        entries={
            "PagedAttention": Entry(make=lambda device: calls.paged_attention(device, chunk)),
            # encoding the chunk's own tiles is part of the measured work
            "KVarN k4v2": Entry(make=_kvarn(chunk, (4, 2), (chunk.held, chunk.total))),
        },
        family=lambda compiled: baselines.attention(chunk, compiled=compiled),
        operations=chunk.operations,
    )


def _flush(sizes: Sizes, batch: int) -> FlushComparison:
    completing = sizes.attention(batch, 255, 1)
    context = sizes.contexts[len(sizes.contexts) // 2]
    return FlushComparison(
        batch=batch,
        context=context,
        layers=sizes.layers,
        encoding=_kvarn(completing, (4, 2), (128, 256)),
        plain=_kvarn(completing, (4, 2), (128, 128)),
        attention=_kvarn(sizes.attention(batch, context - 1, 1), (4, 2)),
        target=Target(figure="fraction", bound=0.003, at_least=False),
    )


def _mix(sizes: Sizes, tokens: int) -> Comparison:
    heads = {"query_heads": sizes.query_heads, "kv_heads": sizes.kv_heads, "dim": sizes.dim}
    shape = MixShape(**heads, sources=2, tokens=tokens)
    # fewer tokens than the most are too few bytes for any bandwidth
    targets = (Target(figure="copy_share", bound=0.7),) if tokens == max(sizes.tokens) else ()
    return Comparison(
        group="mix",
        name=f"{tokens} tokens, {shape.sources} sources",
        entries={"DepthMix": Entry(make=lambda device: calls.depth_mix(device, shape), targets=targets)},
        family=lambda compiled: baselines.depth_mix(shape, compiled=compiled),
    )


def _emit(sizes: Sizes, rows: int, length: int) -> Comparison:
    shape = HeadsShape(hidden=sizes.hidden, vocab=sizes.vocab, k=sizes.k, rows=rows, length=length)
    targets = () if length else (Target(figure="microseconds", bound=15.0, at_least=False),)
    return Comparison(
        group="emit",
        name=f"{rows} rows, L = {length}",
        entries={"ClpEmit": Entry(make=lambda device: calls.clp_emit(device, shape), targets=targets)},
        family=(lambda compiled: baselines.clp_emit(shape, compiled=compiled)) if length else None,
    )


def _linear(shape: LinearShape) -> Comparison:
    return Comparison(
        group="linear",
        name=f"{shape.rows} rows, {shape.size} to {shape.outputs}",
        entries={"Int4Linear": Entry(make=lambda device: calls.int4_linear(device, shape))},
        family=lambda compiled: baselines.linear(shape),
    )


def _split(sizes: Sizes, tokens: int) -> Comparison:
    shape = SplitShape(query_heads=sizes.query_heads, kv_heads=sizes.kv_heads, dim=sizes.dim, tokens=tokens)
    return Comparison(
        group="split",
        name=f"{tokens} tokens",
        entries={"SplitQkv": Entry(make=lambda device: calls.split_qkv(device, shape))},
        family=lambda compiled: baselines.split_qkv(shape, compiled=compiled),
    )


def _greedy(rows: int, vocab: int) -> Comparison:
    return Comparison(
        group="greedy",
        name=f"{rows} rows, {vocab} tokens known",
        entries={"GreedySample": Entry(make=lambda device: calls.greedy_sample(device, rows, vocab))},
        family=lambda compiled: baselines.greedy_sample(rows, vocab),
    )
