#!/usr/bin/env bash
# Gets ONNX Runtime, builds muster and starts a whole fleet with the demo models.
# Arguments are those of `muster up`: scripts/run.sh --port 8000
set -euo pipefail
root=$(dirname "$0")/..

[ -n "${ORT_DYLIB_PATH:-}" ] || "$root/scripts/fetch-onnxruntime.sh"
# From where the user stands, so that file names among the arguments mean what they say.
exec cargo run --release --manifest-path "$root/Cargo.toml" -- up "$@"
