"""The one table of PagedAttention cases; every instruction set and every way of calling runs all of them.

The default tolerance is Case.tolerance, with its reason there; a case that needs another one says why.
"""

from __future__ import annotations

from tests.support.ops.attention_inputs import Case

EDGES = (0, 1, 127, 128, 129, 1000)  # tokens held: nothing, one, around a tile's end, many tiles and two parts

CASES = (
    Case(name="decode_edges", rows=tuple((held, 1) for held in EDGES)),
    Case(name="decode_one_row", rows=((1000, 1),)),
    Case(name="decode_seven_rows", rows=tuple((held, 1) for held in (3, 5, 7, 511, 512, 513, 640)), query_heads=14),
    Case(name="prefill", rows=((0, 200),), query_heads=2, kv_heads=1),
    Case(name="prefill_one_tile", rows=((0, 128),)),
    Case(name="prefill_chunk", rows=((129, 131),)),
    Case(name="prefill_many_blocks", rows=((0, 300),), query_heads=2, kv_heads=2),
    Case(name="mixed", rows=((1000, 1), (0, 67), (0, 0), (127, 2), (128, 0), (600, 9))),
    Case(name="empty_rows", rows=((0, 0), (129, 0))),
    Case(name="no_rows", rows=()),
    Case(name="verify_draft", rows=((1000, 5), (126, 4))),
    Case(name="lens_per_head", rows=((900, 1), (300, 40), (20, 3)), held_skew=77, query_heads=6, kv_heads=3),
    Case(name="fewer_heads_than_other_layers", rows=((900, 1), (0, 40), (130, 3)), other_heads=3, held_skew=77),
    *(
        Case(name=f"dim_{dim}_{value_dim}", rows=((130, 1), (17, 19)), dim=dim, value_dim=value_dim, kv_bits=bits)
        for dim, value_dim, bits in (
            (1, 1, 16),
            (16, 24, 16),
            (24, 16, 32),
            (80, 80, 16),
            (96, 1, 32),
            (128, 128, 16),
            (192, 128, 16),
            (256, 256, 16),
            (33, 47, 16),
        )
    ),
    *(
        Case(name=f"group_{group}", rows=((140, 1), (0, 37), (60, 3)), query_heads=2 * group, kv_heads=2)
        for group in (1, 2, 3, 5, 7, 8, 17)
    ),
    Case(name="one_head_for_all", rows=((10, 3),), query_heads=131, kv_heads=1, dim=16, value_dim=16),
    *(
        Case(name=f"window_{window}", rows=((1000, 1), (100, 150), (0, 3), (127, 30)), window=window, kv_bits=bits)
        for window, bits in ((1, 16), (5, 32), (128, 16), (200, 16), (5000, 16))
    ),
    # logits of hundreds, then the cap: float32 rounds them by 1e-5 before tanh
    Case(name="softcap", rows=((300, 1), (0, 50)), softcap=30.0, magnitude=6.0, tolerance=1e-4),
    Case(name="softcap_small_logits", rows=((300, 1), (0, 50)), softcap=50.0),
    Case(name="sinks", rows=((1000, 1), (0, 50), (3, 2)), sinks=True),
    # sinks of tens dominate most rows: the sink may be the maximum
    Case(name="sinks_large", rows=((1000, 1), (0, 50)), sinks=True, magnitude=8.0, tolerance=1e-4),
    Case(name="everything", rows=((1000, 1), (0, 70), (0, 0), (200, 3)), window=128, softcap=20.0, sinks=True),
    Case(name="float_cache", rows=((1000, 1), (0, 67), (127, 2)), kv_bits=32),
    # a softmax over logits of tens is a maximum: differences of 1e-5 in the logits show
    Case(name="large_logits", rows=((513, 1), (0, 40)), magnitude=10.0, tolerance=2e-4),
    Case(name="saturation", rows=((20, 4),), magnitude=50000.0, tolerance=0.0, dim=1, value_dim=16, query_heads=2),
    Case(name="one_layer", rows=((5, 1),), layers=1, layer=0),
)
