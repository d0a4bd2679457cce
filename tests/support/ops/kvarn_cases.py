"""The one table of KVarNAttention cases; every instruction set and every way of calling runs all of them."""

from __future__ import annotations

from tests.support.ops.kvarn_inputs import Case, Row

EDGES = (0, 1, 127, 128, 129, 255, 256, 257, 600)  # tokens held: around the sink's end, a tile's end, many tiles
MIXED = (Row(600, 1), Row(0, 67), Row(0, 0), Row(127, 2), Row(255, 2), Row(128, 0), Row(300, 90))

CASES = (
    Case(name="decode_edges", rows=tuple(Row(held, 1) for held in EDGES)),
    Case(name="decode_one_row", rows=(Row(1500, 1),)),
    Case(name="decode_many_heads", rows=(Row(700, 1), Row(255, 1)), query_heads=32, kv_heads=8, dim=128),
    Case(
        name="decode_splits", rows=tuple(Row(held, 1) for held in (1022, 1023, 1024, 2047, 2048, 4200)), query_heads=2
    ),
    Case(name="prefill", rows=(Row(0, 600),), query_heads=2, kv_heads=1),
    Case(name="prefill_one_tile", rows=(Row(0, 128),)),
    Case(name="prefill_two_tiles", rows=(Row(0, 256),)),
    Case(name="prefill_chunk", rows=(Row(300, 300),)),
    Case(name="prefill_chunk_in_tile", rows=(Row(300, 50), Row(256, 128), Row(130, 126))),
    Case(name="mixed", rows=MIXED),
    Case(name="mixed_ring_of_two", rows=MIXED, exact_tiles=3),
    Case(name="empty_rows", rows=(Row(0, 0), Row(129, 0))),
    Case(name="no_rows", rows=()),
    Case(name="verify_draft", rows=(Row(1000, 5, 5), Row(254, 4, 1), Row(255, 9, 9), Row(383, 4, 4)), exact_tiles=3),
    Case(
        name="late", rows=(Row(700, 1, 0, 1), Row(600, 300, 0, 1), Row(256, 1, 0, 1), Row(383, 8, 0, 2)), exact_tiles=3
    ),
    Case(name="late_and_draft", rows=(Row(512, 60, 60, 1), Row(511, 70, 70, 0)), exact_tiles=4),
    Case(name="lens_per_head", rows=(Row(900, 1), Row(300, 40), Row(20, 3)), held_skew=77, query_heads=6, kv_heads=3),
    Case(
        name="fewer_heads_than_other_layers",
        rows=(Row(900, 1), Row(0, 140), Row(300, 3), Row(380, 9)),
        other_heads=3,
        held_skew=77,
    ),
    *(
        Case(name=f"bits_{k}_{v}", rows=(Row(520, 1), Row(200, 60), Row(600, 9)), k_bits=k, v_bits=v)
        for k in (2, 4, 8)
        for v in (2, 4, 8)
    ),
    *(
        Case(name=f"dim_{dim}_{k}_{v}", rows=(Row(520, 1), Row(200, 60)), dim=dim, k_bits=k, v_bits=v)
        for dim in (16, 32, 128, 256, 512)
        for k, v in ((4, 2), (2, 8), (8, 4))
    ),
    *(
        Case(name=f"group_{group}", rows=(Row(540, 1), Row(100, 37), Row(400, 3)), query_heads=2 * group, k_bits=2)
        for group in (1, 2, 3, 4, 5, 6, 7, 8, 17)
    ),
    *(
        Case(name=f"group_{group}_of_128", rows=(Row(540, 1), Row(300, 2)), query_heads=group, kv_heads=1, dim=128)
        for group in (1, 2, 4, 7, 8)
    ),
    *(
        Case(name=f"window_{window}", rows=(Row(1000, 1), Row(300, 150), Row(0, 3), Row(500, 30)), window=window)
        for window in (1, 5, 128, 200, 5000)
    ),
    # logits of hundreds, then the cap: halves of new keys that round the other way move them by 1e-2
    Case(name="softcap", rows=(Row(520, 1), Row(100, 50)), softcap=30.0, magnitude=5.0, tolerance=1e-3),
    Case(name="softcap_small_logits", rows=(Row(520, 1), Row(100, 50)), softcap=50.0),
    Case(name="sinks", rows=(Row(1000, 1), Row(0, 50), Row(300, 2)), sinks=True),
    Case(name="values_rotated_in_weights", rows=MIXED, rotate_values=0),
    Case(name="robust", rows=MIXED, robust=1),
    Case(name="robust_small", rows=MIXED, robust=1, magnitude=0.01),
    Case(name="released_small", rows=MIXED, magnitude=0.01),
    Case(name="no_iterations", rows=MIXED, iterations=0),
    Case(name="three_iterations", rows=MIXED, iterations=3, k_bits=2),
    Case(name="everything", rows=MIXED, window=200, softcap=20.0, sinks=True, rotate_values=0, robust=1, exact_tiles=3),
    Case(name="one_layer", rows=(Row(300, 1),), layers=1, layer=0),
)
