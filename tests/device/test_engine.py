"""Tests of whole engines in half precision, through ONNX Runtime and the GPU kernels, against engines for the CPU.

Without a GPU the graph runs on ONNX Runtime's CPU provider, which casts halves, and our ops run in their emulation; only the
CUDA provider itself is left out. The CPU provider takes no bfloat16 graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.support.exporters.families import FAMILIES, save_checkpoint
from tests.support.kernels.device import Device
from tests.support.paths import EXAMPLES

pytest.importorskip("onnxruntime", reason="engines need ONNX Runtime; kernels do not")
pytest.importorskip("onnx_ir", reason="engines are exported first, which needs enginewright[build]")

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.plugins.libraries.cuda import CudaLibrary
from enginewright.plugins.libraries.locate import LibraryError
from enginewright.runtime import LLM, Sampling, load
from enginewright.runtime.backends.onnxruntime import cuda_session
from enginewright.runtime.errors import RequestError, UnsupportedError

pytestmark = pytest.mark.slow

MODEL = EXAMPLES / "tiny-reasoner"
HEADS = EXAMPLES / "tiny-reasoner-clp"
QUESTIONS = ("What is 47 + 385?", "What is 12 * 9?", "Sort these numbers: 5 3 9 1.")

Open = Callable[[Path], LLM]
Build = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build the engine of a dtype and a method; each once."""
    made: dict[tuple[str, str], Path] = {}

    def make(dtype: str, method: str) -> Path:
        if (dtype, method) not in made:
            root = tmp_path_factory.mktemp("engines") / "engine"
            apply = (parse_method(method),) if method else ()
            backend = "onnxruntime" if dtype == "float32" else "onnxruntime-cuda"
            build(str(MODEL), root, Recipe(apply=apply, dtype=dtype), backend)
            made[dtype, method] = root
        return made[dtype, method]

    return make


@pytest.fixture
def on_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Loads an engine for devices on `device`."""
    if device.name == "cuda" and cuda_session.PROVIDER not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    if device.name == "emulated":
        monkeypatch.setattr(cuda_session, "open_library", lambda: device.library)
        on_cpu = partial(cuda_session.CudaSession, provider="CPUExecutionProvider", device="cpu")
        monkeypatch.setattr(cuda_session, "CudaSession", on_cpu)
    return partial(load, max_batch=4, cache_tokens=4096)


def prompts(llm: LLM) -> list[str | list[int]]:
    """The questions in the model's chat format, one of them long enough for several prefill blocks."""
    texts = [llm.apply_chat_template([{"role": "user", "content": question}]) for question in QUESTIONS]
    long = [token for _ in range(5) for token in texts[0]]
    return [*texts, long]


@pytest.mark.parametrize(
    "method", ["", "kvarn:k_bits=8,v_bits=8", f"clp:heads={HEADS},tau=0.3,verify=true"], ids=["paged", "kvarn", "clp"]
)
def test_tokens_are_those_of_the_cpu(method: str, engine: Build, on_device: Open) -> None:
    """Half precision may decide a near tie otherwise; these answers have none in their first tokens."""
    sampling = Sampling(max_tokens=8)
    with load(engine("float32", method)) as llm:
        wanted = [completion.token_ids for completion in llm.generate(prompts(llm), sampling)]
    with on_device(engine("float16", method)) as llm:
        assert type(llm.loop.session).__name__ == "CudaSession"
        got = [completion.token_ids for completion in llm.generate(prompts(llm), sampling)]
    assert got == wanted


def test_logits_are_those_of_the_cpu(engine: Build, on_device: Open) -> None:
    ids = np.random.default_rng(0).integers(3, 200, 300).tolist()
    with load(engine("float32", "")) as llm:
        wanted = llm.logits(ids)
    with on_device(engine("float16", "")) as llm:
        got = llm.logits(ids)
    # halves all the way through four layers: 2^-11 of numbers up to 20, grown by the residual stream
    assert np.abs(got - wanted).max() < 0.15
    assert np.abs(got - wanted).mean() < 0.01


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])  # whose head size is 10
def test_families(family: str, on_device: Open, tmp_path: Path) -> None:
    """Every family in half precision; matrices are scaled so that logits spread as a trained model's."""
    heads = {} if family in ("qwen2", "mistral", "phi3", "mixtral") else {"head_dim": 32}
    one_kind = family not in ("gemma2", "gemma3_text", "gpt_oss")  # which have layers with and without a window
    sizes = {"hidden_size": 128, **heads, **({"num_hidden_layers": 1} if one_kind else {})}  # heads of 32 have kernels
    save_checkpoint(family, tmp_path / "model", gain=2.0, **sizes)
    ids = np.random.default_rng(1).integers(3, 250, 75).tolist()
    build(str(tmp_path / "model"), tmp_path / "wide", Recipe(), "onnxruntime")
    build(str(tmp_path / "model"), tmp_path / "narrow", Recipe(dtype="float16"), "onnxruntime-cuda")
    with load(tmp_path / "wide") as llm:
        wanted = llm.logits(ids)
    with on_device(tmp_path / "narrow") as llm:
        got = llm.logits(ids)
    error = np.abs(got - wanted)
    # 2^-11 of the logits' own size, grown by up to seven layers; a router of experts may decide a near tie otherwise
    assert np.median(error.max(axis=1)) < 0.02 * wanted.std()


def test_sampling_and_reuse_of_prompts(engine: Build, on_device: Open) -> None:
    sampling = Sampling(max_tokens=8, temperature=0.8, seed=7)
    with on_device(engine("float16", "")) as llm:
        prompt = prompts(llm)[-1]
        first, again = (llm.generate([prompt], sampling)[0] for _ in range(2))
    assert again.token_ids == first.token_ids
    assert again.reused_tokens > 0


def test_without_the_library(engine: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> CudaLibrary:
        raise LibraryError("plugins: got no libenginewright_cuda.so, expected the library that nvcc builds; do: ...")

    monkeypatch.setattr(cuda_session, "open_cuda_library", missing)
    with pytest.raises(
        UnsupportedError, match=r"got no libenginewright_cuda\.so, expected the library that nvcc builds"
    ):
        load(engine("float16", ""))


def test_without_the_provider(engine: Build, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_session, "open_library", lambda: device.library)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    message = r"for onnxruntime's CUDAExecutionProvider, and the installed .* has CPUExecutionProvider; pip install "
    with pytest.raises(UnsupportedError, match=message):
        load(engine("float16", ""))


def test_without_enough_memory(engine: Build, on_device: Open, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int, *, host: bool = False) -> int:
        raise MemoryError(f"memory: device memory: got 5 MiB free, expected {size} bytes")

    monkeypatch.setattr(device.library, "allocate", refuse)
    with pytest.raises(RequestError, match=r"load: memory: device memory: got 5 MiB free, .* take \d+ MiB in all"):
        on_device(engine("float16", ""))
