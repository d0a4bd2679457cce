"""Makes calls of the GPU kernels on random contents: the call's structure, and the torch tensors that it points to.

Contents are random numbers that a model could have; tiles lie scattered over their pool, as after a while of serving.
Tensors lie on the device that the caller names. On `cpu` the calls run in the kernels' emulation, which tests use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from enginewright.plugins.libraries.cuda import HALF
from enginewright.plugins.libraries.cuda_calls import CallStructure, structure_of
from enginewright.plugins.ops.attention_ports import ATTENTION_FIELDS
from enginewright.plugins.ops.clp_emit import CLP_EMIT_CALL
from enginewright.plugins.ops.depth_mix import DEPTH_MIX_CALL
from enginewright.plugins.ops.greedy_sample import GREEDY_SAMPLE_CALL
from enginewright.plugins.ops.int4_linear import INT4_LINEAR_CALL
from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION_CALL
from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION_CALL
from enginewright.plugins.ops.split_qkv import SPLIT_QKV_CALL
from enginewright.plugins.ops.tiles import TILE_TOKENS, kvarn_tile_bytes, tile_bytes

Attention = structure_of(ATTENTION_FIELDS)
ClpEmit = structure_of(CLP_EMIT_CALL)
DepthMix = structure_of(DEPTH_MIX_CALL)
GreedySample = structure_of(GREEDY_SAMPLE_CALL)
Int4Linear = structure_of(INT4_LINEAR_CALL)
KVarNAttention = structure_of(KVARN_ATTENTION_CALL)
PagedAttention = structure_of(PAGED_ATTENTION_CALL)
SplitQkv = structure_of(SPLIT_QKV_CALL)


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """A call of a kernel; created by the functions of this module.

    structure: the argument of the library's C function.
    outputs: the tensors that the call writes.
    moved: the least bytes that the call has to move; inputs are read once, outputs written once.
    """

    structure: CallStructure
    outputs: tuple[Tensor, ...]
    moved: int
    kept: tuple[object, ...] = field(repr=False)
    """Tensors that the structure points to."""


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The shape of an attention call: heads, head size, and `batch` rows that hold `held` tokens and get `new` ones."""

    query_heads: int
    kv_heads: int
    dim: int
    batch: int
    held: int
    new: int

    @property
    def total(self) -> int:
        """Tokens of a row, the new ones included."""
        return self.held + self.new

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values of all tokens, as halves."""
        return self.batch * self.kv_heads * self.total * self.dim * 2 * 2

    @property
    def operations(self) -> int:
        """Floating-point operations: two for each multiply-add, visible pairs only."""
        pairs = self.new * self.held + self.new * (self.new + 1) // 2
        return 4 * self.batch * self.query_heads * self.dim * pairs


def halves(device: str, *shape: int, size: float = 1.0) -> Tensor:
    """A tensor of normal random halves with standard deviation `size`."""
    return (torch.randn(shape, device=device) * size).half()


def integers(device: str, numbers: Sequence[int]) -> Tensor:
    """An int32 tensor of the numbers."""
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def scattered(device: str, shape: AttentionShape, tiles: int) -> Tensor:
    """A table [batch, kv_heads, tiles] of all ids of a pool, in random order."""
    ids = torch.randperm(shape.batch * shape.kv_heads * tiles, device=device)
    return ids.int().reshape(shape.batch, shape.kv_heads, tiles)


def bytes_of(*tensors: Tensor) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _attention(device: str, shape: AttentionShape, tiles: int) -> tuple[CallStructure, list[Tensor]]:
    """The fields that both attention ops have, and the tensors that they point to: query, key, value and output first."""
    tokens = shape.batch * shape.new
    query = halves(device, tokens, shape.query_heads, shape.dim)
    key, value = (halves(device, tokens, shape.kv_heads, shape.dim) for _ in range(2))
    output = torch.full_like(query, float("nan"))
    starts = integers(device, range(0, tokens + 1, shape.new))
    lens = integers(device, [shape.held] * (shape.batch * shape.kv_heads))
    tensors = [query, key, value, output, starts, lens, scattered(device, shape, tiles)]
    attention = Attention(
        *(tensor.data_ptr() for tensor in tensors),
        tokens=tokens,
        rows=shape.batch,
        query_heads=shape.query_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.dim,
        value_dim=shape.dim,
        table_heads=shape.kv_heads,
        table_width=tiles,
        longest=shape.new,
        scale=shape.dim**-0.5,
        type=HALF,
    )
    return attention, tensors


def paged_attention(device: str, shape: AttentionShape) -> KernelCall:
    """PagedAttention over a cache of halves."""
    tiles = -(-shape.total // TILE_TOKENS)
    attention, tensors = _attention(device, shape, tiles)
    count = shape.batch * shape.kv_heads * tiles
    pool = halves(device, count, tile_bytes(shape.dim, shape.dim, 16) // 2)
    structure = PagedAttention(attention=attention, tiles=pool.data_ptr(), tile_count=count, kv_bits=16)
    # new keys and values are read once and written to the cache once, in prefill as well
    moved = shape.cache_bytes + bytes_of(*tensors[:4])
    return KernelCall(structure=structure, outputs=(tensors[3],), moved=moved, kept=(*tensors, pool))


def kvarn_attention(
    device: str, shape: AttentionShape, bits: tuple[int, int], encoded: tuple[int, int] | None = None
) -> KernelCall:
    """KVarNAttention over a cache of few bits.

    bits: of a key's and of a value's code.
    encoded: tokens encoded before and after the call; by default all whole tiles of the held tokens, both times.
    """
    before, after = encoded or (shape.held // TILE_TOKENS * TILE_TOKENS,) * 2
    tiles = max(1, after // TILE_TOKENS)
    attention, tensors = _attention(device, shape, tiles)
    heads = shape.batch * shape.kv_heads
    records = made_up_records(device, heads * tiles, shape.dim, bits)
    exact = halves(device, heads, 2, 2 * TILE_TOKENS * shape.dim)
    lens = [integers(device, [length] * heads) for length in (before, after)]
    slots = integers(device, range(shape.batch))
    structure = KVarNAttention(
        attention=attention,
        **{name: tensor.data_ptr() for name, tensor in (("tiles", records), ("exact", exact), ("slots", slots))},
        encoded_before=lens[0].data_ptr(),
        encoded_after=lens[1].data_ptr(),
        record_count=len(records),
        slot_count=shape.batch,
        exact_tiles=2,
        iterations=8,
        k_bits=bits[0],
        v_bits=bits[1],
        rotate_values=1,
    )
    stored = heads * (max(before // TILE_TOKENS, 1) - 1) * records.shape[1]
    held_exactly = heads * (shape.held - max(before - TILE_TOKENS, 0)) * 2 * shape.dim * 2
    moved = stored + held_exactly + bytes_of(*tensors[:4])
    kept = (*tensors, records, exact, slots, *lens)
    return KernelCall(structure=structure, outputs=(tensors[3],), moved=moved, kept=kept)


def made_up_records(device: str, count: int, dim: int, bits: tuple[int, int]) -> Tensor:
    """Records with random codes and scales of 0.25."""
    shape = (count, kvarn_tile_bytes(dim, *bits))
    records = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    for start, length in _scales(dim, bits):
        records[:, start : start + 2 * length].view(torch.float16).fill_(0.25)
    return records


def _scales(dim: int, bits: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Offset and number of the halves in a record, where random bytes could be infinities."""
    keys, values = (TILE_TOKENS * dim * width // 8 for width in bits)
    yield keys, 2 * dim + TILE_TOKENS
    yield keys + 2 * (2 * dim + TILE_TOKENS) + values, dim + 2 * TILE_TOKENS


@dataclass(frozen=True, kw_only=True)
class MixShape:
    """The shape of a DepthMix call: a layer that mixes its values with those of `sources` earlier layers."""

    query_heads: int
    kv_heads: int
    dim: int
    sources: int
    tokens: int


def mix_inputs(device: str, shape: MixShape) -> list[Tensor]:
    """The query, key and value, then the key and value of each source."""
    query = halves(device, shape.tokens, shape.query_heads, shape.dim)
    return [query, *(halves(device, shape.tokens, shape.kv_heads, shape.dim) for _ in range(2 + 2 * shape.sources))]


def depth_mix(device: str, shape: MixShape) -> KernelCall:
    """DepthMix on random heads."""
    tensors = mix_inputs(device, shape)
    mixed = torch.full_like(tensors[2], float("nan"))
    sources = (ctypes.c_void_p * (2 * shape.sources))(*(tensor.data_ptr() for tensor in tensors[3:]))
    structure = DepthMix(
        *(tensor.data_ptr() for tensor in tensors[:3]),
        sources=ctypes.cast(sources, ctypes.c_void_p),
        mixed=mixed.data_ptr(),
        tokens=shape.tokens,
        query_heads=shape.query_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.dim,
        value_dim=shape.dim,
        source_count=shape.sources,
        scale=shape.dim**-0.5,
        type=HALF,
    )
    kept = (*tensors, mixed, sources)
    return KernelCall(structure=structure, outputs=(mixed,), moved=bytes_of(*tensors, mixed), kept=kept)


@dataclass(frozen=True, kw_only=True)
class HeadsShape:
    """The shape of a ClpEmit call: heads with a hidden layer of half the size, which emit `length` more tokens a row."""

    hidden: int
    vocab: int
    k: int
    rows: int
    length: int

    @property
    def inner(self) -> int:
        """Size of a head's hidden layer."""
        return self.hidden // 2


def head_weights(device: str, shape: HeadsShape) -> list[Tensor]:
    """The tensors up_weight, up_bias, out_weight and out_bias of all heads."""
    extra, inner, vocab = shape.k - 1, shape.inner, shape.vocab
    up, up_bias = halves(device, extra, inner, shape.hidden, size=0.03), halves(device, extra, inner, size=0.1)
    return [up, up_bias, halves(device, extra, vocab, inner, size=0.05), halves(device, extra, vocab, size=0.1)]


def clp_emit(device: str, shape: HeadsShape) -> KernelCall:
    """ClpEmit with a classifier that always says `length`."""
    up_weight, up_bias, out_weight, out_bias = head_weights(device, shape)
    hidden = halves(device, shape.rows, shape.hidden)
    greedy, counts = (torch.zeros(shape.rows, dtype=torch.int64, device=device) for _ in range(2))
    classifier = torch.zeros(shape.k, shape.hidden, device=device)
    bias = torch.zeros(shape.k, device=device)
    bias[shape.length] = 50
    tokens = torch.full((shape.rows, shape.k), -7, dtype=torch.int64, device=device)
    structure = ClpEmit(
        hidden=hidden.data_ptr(),
        greedy=greedy.data_ptr(),
        classifier_weight=classifier.data_ptr(),
        classifier_bias=bias.data_ptr(),
        up_weight=up_weight.data_ptr(),
        up_bias=up_bias.data_ptr(),
        out_weight=out_weight.data_ptr(),
        out_bias=out_bias.data_ptr(),
        tokens=tokens.data_ptr(),
        counts=counts.data_ptr(),
        rows=shape.rows,
        size=shape.hidden,
        classes=shape.k,
        extra=shape.k - 1,
        inner=shape.inner,
        vocab=shape.vocab,
        tau=0.3,
        type=HALF,
    )
    used = (tensor[: shape.length] for tensor in (up_weight, up_bias, out_weight, out_bias))
    moved = bytes_of(hidden, greedy, classifier, bias, tokens, counts, *used)
    kept = (hidden, greedy, classifier, bias, up_weight, up_bias, out_weight, out_bias)
    return KernelCall(structure=structure, outputs=(tokens, counts), moved=moved, kept=kept)


@dataclass(frozen=True, kw_only=True)
class LinearShape:
    """The shape of an Int4Linear call: x[rows, size] times W[outputs, size] transposed, a scale for every `block` codes."""

    rows: int
    size: int
    outputs: int
    block: int = 32


def int4_linear(device: str, shape: LinearShape) -> KernelCall:
    """Int4Linear on random weights."""
    x = halves(device, shape.rows, shape.size)
    codes = torch.randint(0, 256, (shape.outputs, shape.size // 2), dtype=torch.uint8, device=device)
    scales = halves(device, shape.outputs, shape.size // shape.block, size=0.01)
    out = torch.full((shape.rows, shape.outputs), float("nan"), dtype=torch.float16, device=device)
    tensors = (x, codes, scales, out)
    structure = Int4Linear(
        *(tensor.data_ptr() for tensor in tensors),
        rows=shape.rows,
        outputs=shape.outputs,
        size=shape.size,
        block=shape.block,
        type=HALF,
    )
    return KernelCall(structure=structure, outputs=(out,), moved=bytes_of(*tensors), kept=tensors)


@dataclass(frozen=True, kw_only=True)
class SplitShape:
    """The shape of a SplitQkv call on `tokens` tokens; whole heads are rotated, query and key heads are normalised."""

    query_heads: int
    kv_heads: int
    dim: int
    tokens: int

    @property
    def packed(self) -> int:
        """Size of a token's packed projection, in elements."""
        return (self.query_heads + 2 * self.kv_heads) * self.dim


def split_inputs(device: str, shape: SplitShape) -> list[Tensor]:
    """The inputs packed, cos, sin, query_norm and key_norm."""
    angles = torch.rand(shape.tokens, shape.dim // 2, device=device) * 6.28
    norms = (1 + halves(device, shape.dim, size=0.1) for _ in range(2))
    return [halves(device, shape.tokens, shape.packed), angles.cos().half(), angles.sin().half(), *norms]


def split_qkv(device: str, shape: SplitShape) -> KernelCall:
    """SplitQkv on a random projection."""
    inputs = split_inputs(device, shape)
    heads = (shape.query_heads, shape.kv_heads, shape.kv_heads)
    outputs = tuple(torch.full_like(inputs[0][:, : count * shape.dim], float("nan")).contiguous() for count in heads)
    structure = SplitQkv(
        *(tensor.data_ptr() for tensor in (*inputs, *outputs)),
        tokens=shape.tokens,
        query_heads=shape.query_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.dim,
        value_dim=shape.dim,
        half=shape.dim // 2,
        epsilon=1e-6,
        type=HALF,
    )
    kept = (*inputs, *outputs)
    return KernelCall(structure=structure, outputs=outputs, moved=bytes_of(*kept), kept=kept)


def logits(device: str, rows: int, vocab: int) -> Tensor:
    """Random logits [rows, vocab] in float32."""
    return torch.randn(rows, vocab, device=device)


def greedy_sample(device: str, rows: int, vocab: int) -> KernelCall:
    """GreedySample on random logits."""
    given = logits(device, rows, vocab)
    tokens = torch.full((rows,), -7, dtype=torch.int64, device=device)
    structure = GreedySample(logits=given.data_ptr(), tokens=tokens.data_ptr(), rows=rows, vocab=vocab)
    return KernelCall(structure=structure, outputs=(tokens,), moved=bytes_of(given, tokens), kept=(given, tokens))
