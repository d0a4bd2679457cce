"""The cache policies: one module each, which the door of `policy.py` finds by its `POLICY`.

An engine whose manifest names none keeps every token, and asks nothing here.

Modules without a POLICY are what several policies share: scores of tokens (`scores.py`, over `attention_weights.py`), budgets of
layers and heads (`budgets.py`, `reasonalloc.py`), and the rule of what a head keeps (`select.py`). They are numpy alone, and
are public: other programs call them.
"""
