"""The interface of cache policies, which choose between steps what a request keeps in the cache, and the choice of one.

A request has two lengths under a policy. Its position is the number of tokens processed: scheduling and RoPE go by it. What
is stored may be fewer tokens, and differs by layer and KV head: attention goes by it. Evicted tokens leave no gap, and
positions are never counted anew.

A policy decides at positions that follow from the prompt's length alone. So a request that is preempted, and computed
again in other pieces, evicts the same at the same places, and its answer does not depend on its neighbours.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.extension import Door
from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.artifact.strict_json import parse
from enginewright.runtime.errors import ArtifactError, UnsupportedError

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
C = TypeVar("C")

TILES = "tiles"
"""The session reads the tile table and the lengths anew in every step, each head for itself: whole tiles can leave."""
SCORES = "scores"
"""The session can score the tokens that a row has stored."""
COMPACT = "compact"
"""The session can move tokens between tiles, so that single ones can leave. A policy that needs it is a TokenPolicy."""
RECORDS = "records"
"""The session can move exact tokens where tiles are encoded, and encode a tile between steps. A policy that needs it is a
RecordPolicy: tokens leave one by one while they are exact, and encoded tiles as a whole."""
MARKS = "marks"
"""The decoder graph marks the stored tokens by how much attention they get, step by step."""
GATES = "gates"
"""The decoder graph marks each token once, by its own states, and not by what later ones attend to."""
NEVER = 1 << 60
"""A position that no request reaches."""


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """The scores of a row's stored tokens in one layer; a session creates it.

    importance[heads, n] float32: of each stored token, n those of the head that stores most; 0 after a head's last.
    redundancy[heads, n] float32: the same; None where the engine's graph does not compute it.
    """

    importance: NDArray[np.float32]
    redundancy: NDArray[np.float32] | None


class CacheSession(Protocol):
    """A session as a policy sees it, and as the tables do."""

    @property
    def offers(self) -> frozenset[str]:
        """The abilities that a policy may need: TILES, SCORES, COMPACT, RECORDS, MARKS, GATES."""
        ...

    def score(self, row: StoredRow) -> Sequence[LayerScores]:
        """Return the scores of a row's tokens in each layer without a window; only with SCORES."""
        ...

    def marks(self, row: StoredRow) -> Sequence[NDArray[np.float32]]:
        """Return the marks of a row's tokens in each layer without a window, [heads, channels, n]; only with MARKS or GATES."""
        ...

    def compact(self, moves: Mapping[int, NDArray[np.int32]]) -> None:
        """Copy tokens between tiles, with their marks; only with COMPACT. With RECORDS, tiles are those that are exact.

        moves: by layer, int32 [n, 4]: tile and place to read, tile and place to write. No tile is read and written.
        """
        ...

    def encode(self, row: int, table: NDArray[np.int32], lens: NDArray[np.int32], encoded: NDArray[np.int32]) -> None:
        """Encode tiles of a row, of the layers without a window; only with RECORDS.

        table[layers, 1, heads, tiles]: its tile table. lens[layers, 1, heads]: tokens that its heads hold.
        encoded[2, layers, 1, heads]: tokens in encoded tiles before and after.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class StoredRow:
    """One row's part of the cache; created by PolicyTables, and a copy that later steps leave as it is.

    The layers are those without a window, in order; windowed layers free their tiles by themselves. Heads that a layer
    does not have store 0 tokens.

    row: its number.
    prompt_tokens: tokens of the request's prompt; 0 where a text is scored.
    processed: tokens that the request has processed, whether or not they are stored: the next token's position.
    stored[layers, heads] int64: tokens stored.
    kept[layers, heads, n] int64: positions of the tokens that the last eviction left, ascending. All tokens that came after
        it are stored as well.
    left[layers, heads] int64: their number; entries of `kept` after it mean nothing.
    tile_tokens: tokens of a tile.
    """

    row: int
    prompt_tokens: int
    processed: int
    stored: Ints
    kept: Ints
    left: Ints
    tile_tokens: int

    @property
    def whole_tiles(self) -> Ints:
        """Number of full tiles of each layer and head, int64 [layers, heads]; the others are unfinished."""
        return self.stored // self.tile_tokens

    def positions(self, layer: int, head: int) -> Ints:
        """Return the positions of the tokens that a head has stored, ascending, int64 [stored]."""
        return self.all_positions()[layer, head, : self.stored[layer, head]]

    def all_positions(self) -> Ints:
        """Return the same for every layer and head, int64 [layers, heads, n]; after a head's last token it means nothing."""
        places = np.arange(int(self.stored.max(initial=0)))
        found: Ints = np.broadcast_to(
            (self.processed - self.stored)[..., None] + places, (*self.stored.shape, len(places))
        ).copy()
        width = min(self.kept.shape[2], len(places))
        np.copyto(found[..., :width], self.kept[..., :width], where=places[:width] < self.left[..., None])
        return found


@dataclass(frozen=True, kw_only=True)
class EncodedRow(StoredRow):
    """A StoredRow whose tokens leave one by one while they are exact; created by RecordTables.

    encoded[layers, heads] int64: how many of the stored tokens, the first ones, leave only as whole tiles. The first tile counts,
        and never leaves. 0: that tile alone.
    """

    encoded: Ints


class CachePolicy(Protocol):
    """Decides which tiles of a request stay, or which tokens; one for each engine, created by its kind.

    needs: the abilities that the session must offer.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def most_stored(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the most tokens that a request stores at any time while it processes `tokens` tokens.

        The result is int64 [layers, heads], or an array that broadcasts to it. Pools are sized and requests admitted by
        it. It must not decrease when an argument grows.
        """
        ...

    def next_due(self, row: StoredRow) -> int | None:
        """Return the number of processed tokens at which `row` is to evict next; None: never.

        The result is above `row.processed`, and depends on nothing but `prompt_tokens`, `processed` and `stored`. Steps
        end there, so that no token is computed in between.
        """
        ...

    def keep(self, rows: Sequence[StoredRow], session: CacheSession) -> Sequence[Mask]:
        """Return for each of `rows`, which are due, a mask of what stays.

        A mask is bool [layers, heads, n], or broadcasts to it. It is over full tiles, and an unfinished one always stays, as
        the first one does where tiles are encoded; that of a TokenPolicy or a RecordPolicy is over stored tokens. n is the largest number of a head of that row; of each head its own
        count.
        """
        ...


class ScoringPolicy(CachePolicy, Protocol):
    """Scores tokens by queries; what makes a policy one is SCORES or COMPACT among its needs.

    queries: newest tokens before an eviction whose queries the scores are made of. A row processes them itself, even where
        an earlier prompt begins with the same tokens.
    """

    @property
    def queries(self) -> int: ...


class TokenPolicy(ScoringPolicy, Protocol):
    """Decides which tokens of a request stay; what makes a policy one is COMPACT among its needs.

    What stays of a tile that loses a token is copied to tiles that are free.
    """

    def most_in_layer(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the most tokens that all heads of a layer together store, as `most_stored` does, int64 [layers]."""
        ...

    def most_kept(self) -> Ints:
        """Return the most tokens that an eviction leaves in a layer's heads that evict, all together, int64 [layers]."""
        ...


class RecordPolicy(ScoringPolicy, Protocol):
    """Decides which tokens of a request stay before they are encoded; what makes a policy one is RECORDS among its needs.

    Its rows are EncodedRows. Their `most_stored` counts encoded tiles alone, and a tile that is not full.

    newest: newest tokens that always stay, and are not encoded yet.
    """

    @property
    def newest(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class PolicyKind(Generic[C]):
    """A kind of cache policy, as a module of `policies/` gives it.

    name: the `kind` in the manifest's `cache.policy`.
    config: a frozen dataclass of its options; a ValueError of its `__post_init__` is reported as the manifest's fault.
    open: returns the policy of an engine with these options and this cache.
    """

    name: str
    config: type[C]
    open: Callable[[C, Cache], CachePolicy]


POLICIES: Door[PolicyKind[Any]] = Door("enginewright.runtime.cache.policies", "POLICY", PolicyKind)


def queries_of(policy: CachePolicy) -> int:
    """Return how many newest tokens before an eviction a row processes itself: one, or those whose queries make scores."""
    has_queries = bool(policy.needs & {COMPACT, RECORDS, SCORES})
    return max(cast(ScoringPolicy, policy).queries, 1) if has_queries else 1


def governed_layers(cache: Cache) -> tuple[int, ...]:
    """Return the numbers of the layers that a policy governs: those without a window."""
    return tuple(index for index, layer in enumerate(cache.layers) if not layer.window)


def open_policy(cache: Cache) -> CachePolicy | None:
    """Return the policy that `cache.policy` asks for; None where it is empty, and every token stays.

    Raises:
        ArtifactError: no policy has that name, or it does not take these options.
        UnsupportedError: the cache has no tiles that a policy could take.
    """
    if not cache.policy:
        return None
    options: Mapping[str, Any] = cache.policy
    known = POLICIES.entries()
    name = options.get("kind")
    if not isinstance(name, str) or name not in known:
        names = ", ".join(known) or "none"
        raise ArtifactError(
            f"manifest.json: cache.policy.kind: got {name!r}, expected one of {names}; add the policy by `extend`, or "
            "upgrade enginewright"
        )
    kind = known[name]
    try:
        config = parse(kind.config, {key: options[key] for key in options if key != "kind"}, "cache.policy")
    except ValueError as e:
        raise ArtifactError(f"manifest.json: policy {name!r}: {e}; build the engine again") from e
    _check_cache(name, cache)
    try:
        policy = kind.open(config, cache)
    except ValueError as e:
        raise ArtifactError(f"manifest.json: policy {name!r}: {e}; build the engine again") from e
    governed = [cache.layers[index] for index in governed_layers(cache)]
    if RECORDS in policy.needs and not all(layer.exact_bytes and layer.exact_tiles > 2 for layer in governed):
        raise UnsupportedError(
            f"manifest.json: policy {name!r} chooses tokens before they are encoded, but the cache is {cache.kind}, without the "
            "exact tiles that it needs in every layer; build the engine again with both"
        )
    if COMPACT in policy.needs and any(layer.exact_bytes for layer in governed):
        raise UnsupportedError(
            f"manifest.json: policy {name!r} evicts single tokens, but the cache is {cache.kind}, whose tiles are encoded and "
            "stay whole; build the engine with a 16-bit cache, or with a policy that evicts whole tiles"
        )
    return policy


def policy_line(policy: Mapping[str, Any]) -> str:
    """Return the policy of a manifest as one line: its kind, then its options."""
    options = "".join(f", {key} {value}" for key, value in policy.items() if key != "kind")
    return f"{policy.get('kind', '?')}{options}"


def tokens_before_eviction(cache: Cache) -> int:
    """Return how many tokens a request surely processes before anything leaves the cache; NEVER without a policy."""
    policy = open_policy(cache)
    if policy is None:
        return NEVER
    layers, heads = len(governed_layers(cache)), max(layer.kv_heads for layer in cache.layers)
    nothing = np.zeros((layers, heads), np.int64)
    new = StoredRow(
        row=0,
        prompt_tokens=0,
        processed=0,
        stored=nothing,
        kept=np.zeros((layers, heads, 0), np.int64),
        left=nothing,
        tile_tokens=cache.tile_tokens,
    )
    due = policy.next_due(new)
    if due is None:
        return NEVER

    def due_of(prompt_tokens: int) -> int:
        found = policy.next_due(dataclasses.replace(new, prompt_tokens=prompt_tokens))
        return NEVER if found is None else found

    prompts = range(1, due)  # one may be due by its end, and so are longer ones
    shortest = bisect_left(prompts, True, key=lambda prompt: due_of(prompt) <= prompt)
    if shortest < len(prompts):
        due = min(due, due_of(prompts[shortest]))
    return due - 1 if COMPACT in policy.needs else max(due - 1, cache.tile_tokens - 1)  # an unfinished tile stays


def check_policy(cache: Cache, offers: frozenset[str], *, tokens_a_step: int, takes_back: bool = False) -> None:
    """Raise UnsupportedError where the cache has a policy that the loaded engine cannot follow.

    offers: abilities of its session, out of TILES, SCORES, COMPACT, MARKS and GATES.
    tokens_a_step: the most tokens that a decoding row brings into a step.
    takes_back: whether all of them but the first are drafts, so that none is brought past the place where a row evicts.
    """
    policy = open_policy(cache)
    if policy is None:
        return
    where = f"load: cache policy {cache.policy['kind']!r}"
    if missing := sorted(policy.needs - offers):
        raise UnsupportedError(
            f"{where}: needs {', '.join(missing)}, but the backend's session offers {', '.join(sorted(offers)) or 'nothing'}; "
            "choose another backend, or build the engine without the policy"
        )
    if tokens_a_step > 1 and not takes_back:
        raise UnsupportedError(
            f"{where}: evicts between single tokens, but the engine decides up to {tokens_a_step} in a step; build the engine "
            "without the policy, without extra heads, or with verify=true"
        )
    if tokens_a_step > 1 and MARKS in policy.needs:
        raise UnsupportedError(
            f"{where}: marks tokens in every step, but the engine takes drafts back, whose marks would stay; build the engine with "
            "another score, or without extra heads"
        )
    held = min(cache.layers[index].held_queries for index in governed_layers(cache))
    queries = cast(ScoringPolicy, policy).queries if SCORES in policy.needs else 0
    if queries and held < queries + tokens_a_step - 1:
        raise UnsupportedError(
            f"{where}: got {held} queries that are held, expected {queries + tokens_a_step - 1} with steps of {tokens_a_step} tokens; "
            "build the engine with a smaller window, or fewer extra heads"
        )


def _check_cache(name: str, cache: Cache) -> None:
    where = f"manifest.json: policy {name!r} evicts tiles"
    if cache.is_dense:
        raise UnsupportedError(f"{where}, but the cache is dense, without any; build the engine with --plugins auto")
    if not governed_layers(cache):
        raise UnsupportedError(
            f"{where}, but every layer has a window, and frees its tiles by itself; build the engine without the policy"
        )
