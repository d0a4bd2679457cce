"""Last tokens of prompts, run many times on the cache of the tokens before them."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from enginewright.exporters.methods.function_vectors.attention_layers import last_logits


class LastTokens:
    """The last tokens of prompts of one length, for passes that change nothing before them.

    The other tokens run once. Where the model's cache does not give what a whole pass does, such as of a model whose values
    are mixed over layers, every pass is a whole one.

    rows: the prompts, int64 [B, S].
    """

    def __init__(self, model: PreTrainedModel, rows: torch.Tensor) -> None:
        self._model, self._rows, self._cache = model, rows, None
        if rows.shape[1] < 2:
            return
        with torch.no_grad():
            self._cache = model(input_ids=rows[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
            if self._cache is not None and not torch.allclose(
                self.logits(), last_logits(model, rows), rtol=1e-3, atol=1e-3
            ):
                self._cache = None

    def logits(self, repeats: int = 1) -> torch.Tensor:
        """The logits after each prompt, each `repeats` times in a row, [B * repeats, V]."""
        with torch.no_grad():
            if self._cache is None:
                return last_logits(self._model, self._rows.repeat_interleave(repeats, 0))
            cache = copy.deepcopy(self._cache)
            cache.batch_repeat_interleave(repeats)
            ids = self._rows[:, -1:].repeat_interleave(repeats, 0)
            logits: torch.Tensor = self._model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            return logits[:, -1]
