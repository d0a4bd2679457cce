"""The generation settings of a checkpoint, and what an engine makes of them."""
