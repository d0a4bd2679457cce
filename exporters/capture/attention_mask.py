"""The masks that a model asks transformers for, read as the tokens that a layer sees: all before it, or those of a window.

transformers makes a mask by calling the function that is registered for the attention's name, with a predicate of two
positions. Here that function makes no tensor, but a note of what the predicate says. The model hands the note to its layers
as it would hand them a tensor, and the attention hook reads it there. So a window counts wherever it is told, and a mask that
no note can express is refused rather than left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PreTrainedConfig

from enginewright.runtime.errors import UnsupportedError

Predicate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(batch, head, q, kv) -> whether the token at position q sees that at kv; index tensors that broadcast."""


@dataclass(frozen=True, kw_only=True)
class AttentionMask:
    """The tokens that each token of a layer sees; `make_mask` creates it.

    family: the model's type.
    window: how many, itself included; 0: all.
    sees_later: whether later tokens are among them.
    refusal: the reason why no op can express it; a layer that uses the mask is then refused.
    """

    family: str
    window: int = 0
    sees_later: bool = False
    refusal: str = ""

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what only a tensor has; a model that asks for it computes with its mask."""
        raise AttributeError(f"its own code reads .{name} of the attention mask, which is no tensor here")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> NoReturn:
        """Refuse to be an operand of torch's functions."""
        mask = next((each for each in args if isinstance(each, cls)), None)
        family = "the model" if mask is None else mask.family
        raise UnsupportedError(f"{family}: its own code changes the attention mask; expected a mask of whole tokens")


def make_mask(
    *, mask_function: Predicate, config: PreTrainedConfig, local_size: int | None = None, **_: Any
) -> AttentionMask:
    """Return what `mask_function` says; transformers calls it with these keywords, and with sizes and types of a tensor.

    local_size: the size of the window or chunk that the mask is told to have.
    """
    family, size = config.model_type, int(local_size or 0)
    with _disable_current_modes():  # numbers, also while a graph is traced with tensors that have none
        q, kv = _probes(size)
        before = kv <= q
        try:
            seen = _evaluate(mask_function, q, kv)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError) as e:
            return AttentionMask(family=family, refusal=f"a mask that depends on more than positions ({e})")
        if torch.equal(seen, before):
            return AttentionMask(family=family)
        if size and torch.equal(seen, before & (kv > q - size)):
            return AttentionMask(family=family, window=size)
        if bool(seen.all()):
            return AttentionMask(family=family, sees_later=True)
    return AttentionMask(family=family, refusal="a mask of chunks, blocks or prefixes")


def _probes(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of queries [n, 1] and keys [1, n] around every place where a mask of the size may change."""
    edges = (0, 3) if not size else (0, size, 2 * size)
    positions = torch.tensor(sorted({max(0, edge + step) for edge in edges for step in range(-2, 3)}))
    return positions[:, None], positions[None, :]


def _evaluate(mask_function: Predicate, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
    """The predicate for one sequence and head, [queries, keys]; it must have numbers, not those of a traced tensor alone."""
    zero = torch.zeros((1, 1, 1, 1), dtype=torch.int64)
    seen = mask_function(zero, zero, q[None, None], kv[None, None])
    return torch.tensor(seen.expand(1, 1, q.shape[0], kv.shape[1])[0, 0].tolist())
