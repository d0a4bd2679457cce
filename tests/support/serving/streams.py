"""A client of the served model: gRPC streams with all their responses, and HTTP requests."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as grpcclient

from enginewright.runtime.triton.ports import INPUTS
from tests.support.serving.tritonserver import Server

if TYPE_CHECKING:
    from tests.support.serving.tritonserver import Server

MODEL = "tiny"
_TYPES = {"STRING": np.object_, "BOOL": np.bool_, "INT64": np.int64, "UINT64": np.uint64, "FP32": np.float32}
_PORTS = {port.name: port for port in INPUTS}


@dataclass(frozen=True)
class Response:
    """One response: its outputs by name, or an error. at: seconds of perf_counter."""

    outputs: dict[str, Any]
    error: str | None
    is_final: bool
    at: float


@dataclass(frozen=True)
class Answer:
    """All responses to one request."""

    responses: list[Response]

    @property
    def error(self) -> str | None:
        return self.responses[-1].error

    @property
    def text(self) -> str:
        return "".join(response.outputs.get("text_output", "") for response in self.responses)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token for response in self.responses for token in response.outputs.get("token_ids", ()))

    @property
    def finish_reason(self) -> str:
        return str(self.responses[-1].outputs["finish_reason"])


def as_inputs(values: dict[str, Any]) -> list[grpcclient.InferInput]:
    """Tensors for inputs by name; arrays are sent as they are."""
    tensors = []
    for name, value in values.items():
        array = value
        if not isinstance(value, np.ndarray):
            kind = _TYPES[_PORTS[name].type]
            listed = value if isinstance(value, (list, tuple)) else [value]
            array = np.array([v.encode() if isinstance(v, str) else v for v in listed], kind)
        names = {"O": "BYTES", "b": "BOOL", "f": f"FP{8 * array.itemsize}", "i": f"INT{8 * array.itemsize}"}
        names["u"] = f"UINT{8 * array.itemsize}"
        tensor = grpcclient.InferInput(name, list(array.shape), names[array.dtype.kind])
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


class Stream:
    """One gRPC stream with any number of requests, none of which may fail while others run."""

    def __init__(self, server: Server, model: str = MODEL) -> None:
        self._client = grpcclient.InferenceServerClient(server.grpc)
        self._model = model
        self._queues: dict[str, SimpleQueue[Response]] = {}
        self._pending: list[str] = []
        self._client.start_stream(callback=self._take)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream."""
        self._client.stop_stream()
        self._client.close()

    def send(self, parameters: dict[str, Any] | None = None, timeout_us: int | None = None, **values: Any) -> str:
        """Send a request and return its id; timeout_us is Triton's own field."""
        name = str(len(self._queues))
        self._queues[name] = SimpleQueue()
        self._pending.append(name)
        self._client.async_stream_infer(
            self._model,
            as_inputs(values),
            request_id=name,
            enable_empty_final_response=True,
            parameters=parameters,
            timeout=timeout_us,
        )
        return name

    def responses(self, name: str, seconds: float = 60) -> Iterator[Response]:
        """Yield a request's responses, the final one included."""
        while True:
            response = self._queues[name].get(timeout=seconds)
            yield response
            if response.is_final:
                return

    def answer(self, name: str, seconds: float = 60) -> Answer:
        """Return all responses to a request."""
        return Answer(list(self.responses(name, seconds)))

    def extra(self, name: str) -> int:
        """The number of responses after those that were read."""
        return self._queues[name].qsize()

    def cancel(self) -> None:
        """Cancel every request of the stream."""
        self._client.stop_stream(cancel_requests=True)

    def _take(self, result: grpcclient.InferResult | None, error: Exception | None) -> None:
        at = time.perf_counter()
        answer = None if result is None else result.get_response()
        if (
            answer is None or result is None
        ):  # the client library drops the id of a request that fails, so it is all of them
            while self._pending:
                self._queues[self._pending.pop()].put(Response({}, str(error), True, at))
            return
        final = answer.parameters.get("triton_final_response")
        outputs = {output.name: _plain(result.as_numpy(output.name)) for output in answer.outputs}
        is_final = final is None or final.bool_param
        if is_final and answer.id in self._pending:
            self._pending.remove(answer.id)
        self._queues[answer.id].put(Response(outputs, None, is_final, at))


def ask(server: Server, *, model: str = MODEL, **values: Any) -> Answer:
    """Send one request on a stream of its own and return its answer."""
    with Stream(server, model) as stream:
        return stream.answer(stream.send(**values))


def generate(server: Server, *, model: str = MODEL, path: str = "generate", **values: Any) -> Any:
    """Return the JSON answer of `generate`, or those of `generate_stream`; an error is raised with its text."""
    body = post(server, f"/v2/models/{model}/{path}", json.dumps(values).encode())
    if path == "generate":
        return json.loads(body)
    return [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line]


def post(server: Server, path: str, data: bytes) -> str:
    """Return the text of an answer; ValueError with the server's text where it refuses."""
    try:
        return server.read(path, data).decode()
    except urllib.error.HTTPError as e:
        raise ValueError(f"{e.code} {json.loads(e.read())['error']}") from None


def _plain(array: np.ndarray) -> Any:
    if array.dtype == np.object_:
        return b"".join(array.ravel().tolist()).decode()
    return array.tolist()
