"""Tests of the class that Triton runs, with a stand-in for Triton's own module; tests/serving runs it in a real server."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import LLM, Sampling, load
from enginewright.runtime.triton.ports import INPUTS, OUTPUTS
from tests.support.exporters.fixtures import built_once
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.native

MODULES = ("enginewright.runtime.triton.model", "enginewright.runtime.triton.metric_publisher")


class Failure(Exception):
    """The stand-in's TritonModelException."""


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class Sender:
    """Keeps responses; refuses to send after the final one, as Triton's does."""

    def __init__(self) -> None:
        self.responses: list[Any] = []
        self.ended = threading.Event()

    def send(self, response: Any, flags: int) -> None:
        if self.ended.is_set():
            raise Failure("Response sender has been closed")
        self.responses.append(response)
        if flags:
            self.ended.set()

    def is_cancelled(self) -> bool:
        return False


class Request:
    def __init__(self, parameters: str = "", **tensors: np.ndarray) -> None:
        self.sender = Sender()
        self._parameters, self._tensors = parameters, tensors

    def get_response_sender(self) -> Sender:
        return self.sender

    def requested_output_names(self) -> list[str]:
        return [port.name for port in OUTPUTS]

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self._tensors.items()]

    def parameters(self) -> str:
        return self._parameters

    def timeout(self) -> int:
        return 0


class Family:
    COUNTER, GAUGE = "counter", "gauge"
    refuses = False

    def __init__(self, name: str, description: str, kind: str) -> None:
        if self.refuses:
            raise Failure("metrics not supported")

    def Metric(self, labels: dict[str, str]) -> Any:
        return types.SimpleNamespace(increment=lambda _: None, set=lambda _: None, labels=labels)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A stand-in for triton_python_backend_utils; `log` keeps what is logged."""
    module = types.ModuleType("triton_python_backend_utils")
    module.log = []  # type: ignore[attr-defined]
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1  # type: ignore[attr-defined]
    module.Tensor, module.TritonModelException = Tensor, Failure  # type: ignore[attr-defined]
    module.MetricFamily = type("MetricFamily", (Family,), {})  # type: ignore[attr-defined]
    module.Logger = types.SimpleNamespace(log_info=module.log.append)  # type: ignore[attr-defined]
    module.InferenceResponse = lambda tensors, error=None: types.SimpleNamespace(  # type: ignore[attr-defined]
        outputs={tensor.name(): tensor.as_numpy() for tensor in tensors}, error=error
    )
    codes = {name: name for name in ("INTERNAL", "INVALID_ARG", "UNAVAILABLE", "CANCELLED")}
    error = type(
        "TritonError", (), {**codes, "__init__": lambda self, text, code: vars(self).update(text=text, code=code)}
    )
    module.TritonError = error  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module
    for name in MODULES:
        sys.modules.pop(name, None)


Open = Callable[..., Any]


@pytest.fixture
def open_model(triton: types.ModuleType, tiny_engine: Path, tmp_path: Path) -> Iterator[Open]:
    """Makes models of the tiny engine, and finalizes them."""
    opened = []

    def make(**parameters: str) -> Any:
        (tmp_path / "m/1").mkdir(parents=True, exist_ok=True)
        if not (tmp_path / "m/1/engine").exists():
            (tmp_path / "m/1/engine").symlink_to(tiny_engine)
        values = {"max_queue": "4", "threads": "1", **parameters}
        config = {
            "parameters": {name: {"string_value": value} for name, value in values.items()},
            "instance_group": [{"count": 2}],
        }
        model = importlib.import_module(MODULES[0]).TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(tmp_path / "m"),
                "model_version": "1",
                "model_name": "m",
                "model_instance_name": "m_0_0",
            }
        )
        opened.append(model)
        return model

    yield make
    for model in opened:
        model.finalize()


@pytest.fixture
def llm(tiny_engine: Path) -> Iterator[LLM]:
    with load(tiny_engine, threads=1) as opened:
        yield opened


def texts(*values: bytes) -> np.ndarray:
    return np.array(values, np.object_)


def test_outputs_have_the_declared_names_types_and_shapes(open_model: Open, llm: LLM) -> None:
    request = Request(
        '{"temperature": 0}', text_input=texts(b"the cat"), max_tokens=np.array([9]), logprobs=np.array([2])
    )
    open_model().execute([request])
    assert request.sender.ended.wait(60)
    (response,) = request.sender.responses
    expected = llm.generate("the cat", Sampling(max_tokens=9, logprobs=2))[0]
    assert set(response.outputs) == {port.name for port in OUTPUTS}
    types_of = {"STRING": np.object_, "INT64": np.int64, "FP32": np.float32}
    for port in OUTPUTS:
        array = response.outputs[port.name]
        assert array.dtype == types_of[port.type] and array.ndim == len(port.dims), port.name
    assert response.outputs["text_output"][0].decode() == expected.text
    assert response.outputs["token_ids"].tolist() == list(expected.token_ids)
    assert (
        response.outputs["top_token_ids"].shape
        == response.outputs["top_logprobs"].shape
        == (len(expected.token_ids), 2)
    )
    assert response.outputs["finish_reason"][0] == expected.finish_reason.encode()


@pytest.mark.slow
def test_an_engine_that_evicts_serves(
    open_model: Open, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = Recipe(apply=(parse_method("evict:budget=40,interval=16"),), max_context=512, max_batch=4)
    engine = built_once(tmp_path_factory, EXAMPLES / "tiny-reasoner", recipe)
    (tmp_path / "m/1").mkdir(parents=True)
    (tmp_path / "m/1/engine").symlink_to(engine)
    prompts = [list(range(5, 5 + length)) for length in (9, 60, 33)]
    requests = [
        Request(input_ids=np.array(prompt), max_tokens=np.array([90]), ignore_eos=np.array([True]))
        for prompt in prompts
    ]
    open_model().execute(requests)
    assert all(request.sender.ended.wait(60) for request in requests)
    found = [tuple(request.sender.responses[0].outputs["token_ids"].tolist()) for request in requests]
    with load(engine, threads=1) as alone:
        greedy = Sampling(max_tokens=90, ignore_eos=True)
        assert found == [alone.generate([prompt], greedy)[0].token_ids for prompt in prompts]


def test_a_stream_ends_once_and_tells_the_counts_then(open_model: Open) -> None:
    request = Request(
        input_ids=np.array([5, 6]), max_tokens=np.array([9]), stream=np.array([True]), ignore_eos=np.array([True])
    )
    open_model().execute([request])
    assert request.sender.ended.wait(60)
    *pieces, last = [response.outputs for response in request.sender.responses]
    assert all(set(piece) == {"text_output", "token_ids"} for piece in pieces)
    assert (last["num_input_tokens"].tolist(), last["num_output_tokens"].tolist()) == ([2], [9])


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_comes_first_and_counts_only_as_asked(open_model: Open, llm: LLM, stream: bool) -> None:
    request = Request(
        text_input=texts(b"the cat"),
        max_tokens=np.array([9]),
        stream=np.array([stream]),
        exclude_input_in_output=np.array([False]),
        return_num_input_tokens=np.array([False]),
        return_num_output_tokens=np.array([True]),
    )
    open_model().execute([request])
    assert request.sender.ended.wait(60)
    outputs = [response.outputs for response in request.sender.responses]
    expected = llm.generate("the cat", Sampling(max_tokens=9))[0]
    assert b"".join(each["text_output"][0] for each in outputs).decode() == "the cat" + expected.text
    assert "num_input_tokens" not in outputs[-1]
    assert outputs[-1]["num_output_tokens"].tolist() == [len(expected.token_ids)]


def test_errors_have_codes_and_reach_their_client(open_model: Open) -> None:
    model = open_model(max_queue="0", max_batch="1")
    bad, worse = Request(text_input=texts(b"")), Request("{", text_input=texts(b"a"))
    listed = Request("[1]", text_input=texts(b"a"))
    long = Request(input_ids=np.array([5]), max_tokens=np.array([1000]), ignore_eos=np.array([True]))
    late = Request(input_ids=np.array([5]), max_tokens=np.array([1]))
    broken = Request(text_input=texts(b"a"))
    broken.timeout = lambda: 1 // 0
    model.execute([bad, worse, listed, broken, long, late])
    assert late.sender.ended.wait(60) and long.sender.ended.wait(60)
    found = [
        (r.error.code, r.error.text) for request in (bad, worse, broken, late, listed) for r in request.sender.responses
    ]
    assert found[0] == ("INVALID_ARG", "text_input: got nothing, expected a prompt")
    assert found[1][0] == "INVALID_ARG" and found[1][1].startswith("parameters: not valid JSON")
    assert found[2][0] == "INTERNAL"
    assert found[3] == ("UNAVAILABLE", "queue: full, 1 requests run and 0 wait; try again later")
    assert found[4] == ("INVALID_ARG", "parameters: got a JSON list, expected an object; send a JSON object")
    assert long.sender.responses[-1].error is None


def test_finalizing_answers_who_still_waits(open_model: Open) -> None:
    model = open_model()
    requests = [
        Request(input_ids=np.array([5]), max_tokens=np.array([1000]), ignore_eos=np.array([True])) for _ in range(12)
    ]
    model.execute(requests)
    model._server.close()
    for request in requests:
        assert request.sender.ended.is_set()
    assert {r.error.code for request in requests for r in request.sender.responses if r.error} == {"CANCELLED"}


def test_an_engine_that_cannot_be_loaded_says_why(open_model: Open, tmp_path: Path) -> None:
    (tmp_path / "m/1/engine").mkdir(parents=True)
    with pytest.raises(Failure, match=r"got no manifest.json, expected an engine directory"):
        open_model()


def test_load_gets_what_the_config_says(open_model: Open) -> None:
    model = open_model(max_batch="2", cache_tokens="512", prefill_chunk="64", backend="onnxruntime", max_queue="3")
    capacity = model._server.llm.capacity
    assert (capacity.rows, capacity.step_tokens) == (2, 64)
    with pytest.raises(Failure, match="load: backend: got 'tensorrt'"):
        open_model(backend="tensorrt")


def test_a_server_without_metrics(open_model: Open, triton: Any) -> None:
    triton.MetricFamily.refuses = True
    request = Request(input_ids=np.array([5]), max_tokens=np.array([2]))
    open_model().execute([request])
    assert request.sender.ended.wait(60)
    assert "no custom metrics, because the server has none (metrics not supported)" in triton.log[0]


def test_inputs_are_what_sampling_knows() -> None:
    names = {port.name for port in INPUTS}
    assert {*vars(Sampling())} - names == {"logit_bias"}
