"""The exporters: they turn a checkpoint and methods into an engine directory with graphs, or into another checkpoint."""
