"""Ports and attributes that several attention ops have."""

from __future__ import annotations

from enginewright.plugins.ops.op import Attribute, Tensor

QUERY_STARTS = Tensor("query_starts", ("int32",), ("B1",), "row b owns tokens query_starts[b] .. query_starts[b + 1]")
KV_LENS = Tensor("kv_lens", ("int32",), ("L", "B", "Hkv"), "tokens held before this call, per layer, row and KV head")
SINKS = Tensor("sinks", ("float32",), ("Hq",), "one extra logit per head that takes weight but no value", optional=True)
SCALE = Attribute("scale", "float", "factor on q . k")
WINDOW = Attribute("window", "int", "a token sees itself and the window - 1 before it; 0: all", default=0)
SOFTCAP = Attribute("softcap", "float", "logits become softcap * tanh(logits / softcap); 0: off", default=0.0)
