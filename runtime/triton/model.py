"""The class that Triton's Python backend runs: passes Triton's requests to a Server, and its responses to Triton."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from enginewright.runtime.artifact.files.json_file import as_object, parse_json
from enginewright.runtime.errors import EnginewrightError, RequestError
from enginewright.runtime.loader import load
from enginewright.runtime.machine import physical_cores
from enginewright.runtime.triton.metric_publisher import open_publisher
from enginewright.runtime.triton.ports import BACKEND, ENGINE, LOAD_OPTIONS, MAX_QUEUE
from enginewright.runtime.triton.served_request import ServedRequest, read_request
from enginewright.runtime.triton.server import CancelledError, GoneError, Piece, QueueFullError, Server, TimedOutError

# Triton completes the module pb_utils only after it has imported this one, so pb_utils may not be used at import time.
_CODES = (
    (QueueFullError, "UNAVAILABLE"),
    (CancelledError, "CANCELLED"),
    (TimedOutError, "UNAVAILABLE"),
    (RequestError, "INVALID_ARG"),
)


class TritonPythonModel:
    """One instance of the model: loads the engine next to model.py, and serves it until Triton unloads the model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine; an error of loading becomes Triton's error for the model."""
        config = parse_json(args["model_config"], "config.pbtxt", EnginewrightError, "write the repository again")
        options = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        instances = max(sum(group.get("count", 1) for group in config.get("instance_group", [])), 1)
        numbers = {name: int(options[name]) for name in LOAD_OPTIONS if name in options}
        root = Path(args["model_repository"]) / args["model_version"] / ENGINE
        try:
            llm = load(
                root,
                numbers.get("threads", max(physical_cores() // instances, 1)),
                max_batch=numbers.get("max_batch"),
                cache_tokens=numbers.get("cache_tokens"),
                prefill_chunk=numbers.get("prefill_chunk", 512),
                backend=options.get(BACKEND),
            )
        except EnginewrightError as e:
            raise pb_utils.TritonModelException(str(e)) from e
        labels = {
            "model": args["model_name"],
            "version": args["model_version"],
            "instance": args["model_instance_name"],
        }
        self._batched = config.get("max_batch_size", 0) > 0
        self._server = Server(llm, max_queue=int(options[MAX_QUEUE]), publisher=open_publisher(labels))

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue the requests and return at once; their clients are answered as tokens come."""
        for request in requests:
            client = _Client(request.get_response_sender(), request.requested_output_names(), batched=self._batched)
            try:
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                mend = "send a JSON object"
                given = parse_json(request.parameters() or "{}", "parameters", RequestError, mend)
                parameters = as_object(given, "parameters", RequestError, mend)
                served = read_request(self._server.llm, tensors, parameters, request.timeout())
                client.follow(served)
                self._server.submit(served, client)
            except Exception as e:  # of any kind: it concerns this client alone
                self._server.refuse(client, e)

    def finalize(self) -> None:
        """Stop serving, after every client has had an answer."""
        self._server.close()
        del self._server


class _Client:
    """Sends the responses of one request; created by the model for each.

    It keeps only Triton's sender, so that Triton can release the request itself.

    sender: Triton's response sender.
    wanted: names of the outputs that the client asks for.
    batched: whether the model is declared with a batch dimension, of size one, and with 32-bit whole numbers.
    """

    def __init__(self, sender: Any, wanted: Iterable[str], *, batched: bool) -> None:
        self._sender = sender
        self._wanted = frozenset(wanted)
        self._batched = batched
        self._echo = ""

    def follow(self, request: ServedRequest) -> None:
        """Shape the responses as the request asks; called before the first one."""
        self._wanted -= request.left_out
        self._echo = request.echo

    def send(self, piece: Piece) -> None:
        """Send `piece` as a response, in the outputs that the client asks for; GoneError where it cannot be sent."""
        if self._echo:
            piece, self._echo = dataclasses.replace(piece, text=self._echo + piece.text), ""
        outputs = {name: value for name, value in _outputs(piece).items() if name in self._wanted}
        if self._batched:
            narrow = {np.dtype(np.int64): np.int32}
            outputs = {
                name: value[None].astype(narrow.get(value.dtype, value.dtype)) for name, value in outputs.items()
            }
        tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
        self._respond(pb_utils.InferenceResponse(tensors), is_last=piece.end is not None)

    def fail(self, error: Exception) -> None:
        """Send `error` as the last response, with the code that Triton has for its kind; GoneError where it cannot be sent."""
        code = next((code for kind, code in _CODES if isinstance(error, kind)), "INTERNAL")
        known = pb_utils.TritonError(str(error), getattr(pb_utils.TritonError, code))
        self._respond(pb_utils.InferenceResponse([], known), is_last=True)

    def is_cancelled(self) -> bool:
        """Whether Triton says that the client has cancelled."""
        return bool(self._sender.is_cancelled())

    def _respond(self, response: Any, *, is_last: bool) -> None:
        try:
            self._sender.send(response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_last else 0)
        except pb_utils.TritonModelException as e:
            raise GoneError(f"response: not sent ({e})") from e


def _outputs(piece: Piece) -> dict[str, Any]:
    """Return a response's tensors by name."""
    tensors: dict[str, Any] = {
        "text_output": np.array([piece.text.encode()], np.object_),
        "token_ids": np.array(piece.token_ids, np.int64),
    }
    if piece.logprobs:
        tensors["logprobs"] = np.array([each.chosen for each in piece.logprobs], np.float32)
        if piece.logprobs[0].top:
            tensors["top_token_ids"] = np.array([[id for id, _ in each.top] for each in piece.logprobs], np.int64)
            tensors["top_logprobs"] = np.array([[p for _, p in each.top] for each in piece.logprobs], np.float32)
    if piece.end is not None:
        tensors["finish_reason"] = np.array([piece.end.finish_reason.encode()], np.object_)
        tensors["num_input_tokens"] = np.array([piece.end.prompt_tokens], np.int64)
        tensors["num_output_tokens"] = np.array([len(piece.end.token_ids)], np.int64)
    return tensors
