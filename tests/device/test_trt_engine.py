"""Tests of whole engines in half precision as TensorRT plans: the runtime's session and the emulated GPU kernels.

The fake of tests/support/runtime runs the plan in host memory; only TensorRT itself and its plugins are left out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from enginewright.exporters.export import export
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import LLM, Sampling, load
from enginewright.runtime.backends.device.padded_buffers import PaddedBuffers
from enginewright.runtime.backends.tensorrt.packed_session import TensorRTSession
from tests.support.kernels.device import Device
from tests.support.paths import EXAMPLES
from tests.support.runtime.fake_cuda import FakeCuda
from tests.support.runtime.tensorrt_engines import add_plan, install

MODEL = EXAMPLES / "tiny-reasoner"
HEADS = EXAMPLES / "tiny-reasoner-clp"
QUESTIONS = ("What is 47 + 385?", "What is 12 * 9?", "Sort these numbers: 5 3 9 1.")


def prompts(llm: LLM) -> list[list[int]]:
    """The questions in the model's chat format, one of them long enough for several prefill blocks."""
    texts = [llm.apply_chat_template([{"role": "user", "content": question}]) for question in QUESTIONS]
    return [*texts, [token for _ in range(8) for token in texts[0]]]


@pytest.mark.parametrize(
    "method", ["", "kvarn:k_bits=8,v_bits=8", f"clp:heads={HEADS},tau=0.3,verify=true"], ids=["paged", "kvarn", "clp"]
)
def test_tokens_are_those_of_the_cpu(
    method: str, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three requests decode in steps of four, with padding; half precision decides none of these tokens otherwise."""
    if device.name != "emulated":
        pytest.skip("the fake TensorRT works on memory of the host")
    apply, sampling = (parse_method(method),) if method else (), Sampling(max_tokens=24)
    for dtype in ("float32", "float16"):
        (tmp_path / dtype).mkdir()
        export(str(MODEL), tmp_path / dtype, Recipe(apply=apply, dtype=dtype, max_batch=4, max_context=1024))
    with load(tmp_path / "float32") as llm:
        questions = prompts(llm)
        wanted = [[done.token_ids for done in llm.generate(part, sampling)] for part in (questions[:3], questions)]
    cuda = FakeCuda()
    install(monkeypatch, cuda, device.library.path)
    with load(add_plan(tmp_path / "float16", tmp_path / "engine"), cache_tokens=4096) as llm:
        session = llm.loop.session
        assert isinstance(session, TensorRTSession) and isinstance(session._buffers, PaddedBuffers)
        got = [[done.token_ids for done in llm.generate(part, sampling)] for part in (questions[:3], questions)]
    assert got == wanted
    assert cuda.launches > 10
