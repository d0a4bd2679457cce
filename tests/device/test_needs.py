"""Tests that kernels can be tested on a GPU machine with nvcc, torch, numpy, pytest and the checkout alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

COLLECT = """
import sys
for name in ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "safetensors", "tokenizers", "transformers"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_kernel_tests_need_neither_onnx_nor_transformers() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", COLLECT, ROOT / "tests/kernels", ROOT / "tests/device"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert "test_paged_attention.py" in ran.stdout and "test_engine.py::" not in ran.stdout
