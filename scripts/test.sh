#!/usr/bin/env bash
# Runs every test: Rust's, those in its documentation, OpenAI's own clients against `muster up`, and the web pages in a browser.
# Wants Rust and Python, Node for one of the clients, and Chromium for the pages; ONNX Runtime goes to the user's cache, everything else to target/.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}

[ -n "${ORT_DYLIB_PATH:-}" ] || scripts/fetch-onnxruntime.sh

# All targets at once: the binary for the Python tests then shares its crates with the Rust tests.
cargo build --workspace --all-targets
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace
else
    cargo test --workspace --all-targets
fi
cargo test --workspace --doc

# Gives the name of an environment with what a folder of tests requires.
environment() {
    local venv=$target/$1-tests requirements=tests/$1/requirements.txt
    if ! cmp --silent "$requirements" "$venv/requirements.txt"; then
        python3 -m venv --clear "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
        cp "$requirements" "$venv/"
    fi
    echo "$venv"
}

venv=$(environment python)
MUSTER_BINARY=$target/debug/muster "$venv/bin/python" -m pytest tests/python "$@"

if command -v chromium >/dev/null; then
    venv=$(environment browser)
    MUSTER_BINARY=$target/debug/muster "$venv/bin/python" -m pytest tests/browser
elif [ -n "${CI:-}" ]; then
    echo "chromium is not installed; on Debian: apt-get install chromium" >&2
    exit 1
else
    echo "not tested: the web pages, for chromium is not installed (on Debian: apt-get install chromium)"
fi

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    echo "not tested: OpenAI's client for Node, for node and npm are not installed"
    exit
fi
modules=$target/node-tests
mkdir -p "$modules"
cp tests/node/client.test.js tests/node/package.json tests/node/.npmrc "$modules/"
if ! cmp --silent tests/node/package-lock.json "$modules/package-lock.json"; then
    cp tests/node/package-lock.json "$modules/package-lock.json"
    npm ci --prefix "$modules" || { rm "$modules/package-lock.json"; exit 1; }
fi
MUSTER_BINARY=$(realpath "$target/debug/muster") npm test --prefix "$modules"
