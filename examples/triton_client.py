"""Asks a served model one question over gRPC and prints the answer while it is generated.

pip install 'tritonclient[grpc]'
python examples/triton_client.py 127.0.0.1:8001 tiny-reasoner "What is 47 + 385?"
"""

import json
import sys
from queue import SimpleQueue

import numpy as np
import tritonclient.grpc as grpcclient


def tensor(name: str, kind: str, value: object) -> grpcclient.InferInput:
    """Return an input of one value.

    kind: Triton's name for its type.
    """
    types = {"BYTES": np.object_, "BOOL": np.bool_, "INT64": np.int64, "FP32": np.float32}
    built = grpcclient.InferInput(name, [1], kind)
    built.set_data_from_numpy(np.array([value], types[kind]))
    return built


address, model, question = sys.argv[1:]
messages = json.dumps([{"role": "user", "content": question}])
inputs = [
    tensor("messages", "BYTES", messages.encode()),  # or text_input: plain text; or input_ids: token ids
    tensor("stream", "BOOL", True),
    tensor("max_tokens", "INT64", 200),
    tensor("temperature", "FP32", 0.0),
]
answers: SimpleQueue = SimpleQueue()
with grpcclient.InferenceServerClient(address) as client:
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer(model, inputs)
    while True:
        result, error = answers.get(timeout=60)
        if error is not None:
            sys.exit(f"the server refuses: {error}")
        print(result.as_numpy("text_output")[0].decode(), end="", flush=True)
        reason = result.as_numpy("finish_reason")  # with the last piece
        if reason is not None:
            tokens = result.as_numpy("num_output_tokens")[0]
            print(f"\n[{reason[0].decode()} after {tokens} tokens]")
            break
    client.stop_stream()  # cancel_requests=True would also end running requests
