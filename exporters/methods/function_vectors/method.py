"""Function vectors: the attention heads that carry a task, found by relevance, and what they add, as vectors to steer with.

The command `enginewright tune function-vector` makes them; the method `steering` lets engines add them.

Source: arXiv 2606.05079; function vectors are those of arXiv 2310.15213.
"""

from __future__ import annotations

from enginewright.exporters.methods.function_vectors.extraction_command import TUNERS
from enginewright.exporters.methods.hooks import Method

METHOD: Method[None] = Method(
    name="function_vectors",
    summary="vectors of a task, from its attention heads, for steering",
    paper="2606.05079",
    tuners=TUNERS,
)
