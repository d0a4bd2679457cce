"""What a model loses to quantised caches and weights."""
