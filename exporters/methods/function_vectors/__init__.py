"""Function vectors: what a task's attention heads add to the last token, found by relevance, as vectors to steer with."""

from enginewright.exporters.methods.function_vectors.method import METHOD
from enginewright.exporters.methods.function_vectors.scores import head_scores, top_heads
from enginewright.exporters.methods.function_vectors.vectors import steering_vectors

__all__ = ["METHOD", "head_scores", "steering_vectors", "top_heads"]
