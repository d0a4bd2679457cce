#!/bin/sh
# Asks a served model over HTTP, first for the whole answer, then piece by piece.
#
#     sh examples/triton_curl.sh 127.0.0.1:8000 tiny-reasoner
set -eu
url="http://$1/v2/models/$2"

curl --fail-with-body --silent --show-error "$url/generate" \
  -d '{"messages": "[{\"role\": \"user\", \"content\": \"What is 47 + 385?\"}]", "max_tokens": 200}'
echo
curl --fail-with-body --silent --show-error --no-buffer "$url/generate_stream" \
  -d '{"text_input": "12 + 3", "max_tokens": 8, "stream": true, "temperature": 0.8, "top_p": 0.95, "seed": 1}'
