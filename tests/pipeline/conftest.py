"""Tiny random checkpoints and engines built from them."""

import torch

from tests.support.exporters.fixtures import checkpoint, engine

__all__ = ["checkpoint", "engine"]

torch.set_num_threads(1)  # the models are tiny: threads that wait for each other cost more than they share
