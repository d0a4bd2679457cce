"""Tests of a family whose layers differ in KV heads and head sizes, from checkpoint to logits, with each kind of graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.backends.onnxruntime import cuda_session
from tests.support.exporters.families import SIZES
from tests.support.kernels.device import Device
from tests.support.kernels.fixtures import device

__all__ = ["device"]

pytestmark = [pytest.mark.native, pytest.mark.slow]

SHAPE = {
    "head_dim": 32,
    "global_head_dim": 64,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 200,
    "layer_types": ["sliding_attention", "full_attention"],
}
TOKENS = np.random.default_rng(0).integers(3, 250, 300).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    config = AutoConfig.for_model("gemma4_text", **{**SIZES, **SHAPE})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    root = tmp_path_factory.mktemp("model") / "gemma4"
    model.save_pretrained(root)
    return root, model


@pytest.mark.parametrize(
    ("recipe", "tolerance"),
    [
        (Recipe(kv_bits=32, max_batch=4), 1e-5),  # float32 sums in another order
        (Recipe(plugins="none", max_batch=4), 1e-5),
        # 8 bits of keys and values that are normalised, so that products are large: hundredths of logits below 1
        (Recipe(apply=(parse_method("kvarn:k_bits=8,v_bits=8"),), max_batch=4), 5e-2),
    ],
    ids=["packed", "dense", "encoded"],
)
def test_engines_compute_the_models_logits(
    recipe: Recipe, tolerance: float, model: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    root, reference = model
    build(str(root), tmp_path / "engine", recipe, "onnxruntime")
    assert [layer.kv_heads for layer in directory.load(tmp_path / "engine").cache.layers] == [2, 1]
    with torch.no_grad():
        wanted = reference(torch.tensor([TOKENS])).logits[0].numpy()
    with load(tmp_path / "engine", 1, prefill_chunk=128) as llm:
        np.testing.assert_allclose(llm.logits(TOKENS), wanted, atol=tolerance)
        together = llm.generate([TOKENS[:9], TOKENS[:140]], Sampling(max_tokens=20, ignore_eos=True))
        alone = llm.generate([TOKENS[:140]], Sampling(max_tokens=20, ignore_eos=True))
        assert together[1].token_ids == alone[0].token_ids


def test_kernels_for_devices_compute_them_too(
    device: Device, model: tuple[Path, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.name != "emulated":
        pytest.skip("whole engines on a GPU: tests/device")
    root, reference = model
    build(str(root), tmp_path / "engine", Recipe(dtype="float16", max_batch=4), "onnxruntime-cuda")
    monkeypatch.setattr(cuda_session, "open_library", lambda: device.library)
    on_cpu = partial(cuda_session.CudaSession, provider="CPUExecutionProvider", device="cpu")
    monkeypatch.setattr(cuda_session, "CudaSession", on_cpu)
    with torch.no_grad():
        wanted = reference(torch.tensor([TOKENS])).logits[0].numpy()
    with load(tmp_path / "engine", max_batch=3, cache_tokens=2048, prefill_chunk=128) as llm:
        assert llm.loop.scheduler.tables.kv_lens.shape == (2, 3, 2)
        error = np.abs(llm.logits(TOKENS) - wanted)
    assert np.median(error.max(axis=1)) < 0.02 * wanted.std()  # as of other families in halves
