#!/usr/bin/env bash
# Trains, serves and asks the model of digits; see README.md. Takes the binary: run.sh [MUSTER], target/release/muster where
# scripts/run.sh has built it.
set -euo pipefail
here=$(dirname "$0")
muster=${1:-$here/../../../target/release/muster}
command -v "$muster" >/dev/null || { echo "$muster is not there: build it with scripts/run.sh, or name it" >&2; exit 1; }
home=${XDG_CACHE_HOME:-$HOME/.cache}/muster/examples/digits

venv=$home/venv
if ! cmp --silent "$here/requirements.txt" "$venv/requirements.txt"; then
    python3 -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/"
fi
"$venv/bin/python" "$here/train.py" "$home"

log=$(mktemp)
"$muster" up --model-repository "$home/models" --port 0 --grpc-port 0 >"$log" 2>&1 &
fleet=$!
trap 'kill "$fleet" 2>/dev/null; wait "$fleet" || true; rm -f "$log"' EXIT
for _ in $(seq 100); do
    url=$(sed -n 's|.*\(http://127\.0\.0\.1:[0-9]*\)/v1.*|\1|p' "$log" | head -1)
    if [ -n "$url" ] && curl --silent --fail "$url/v2/models/digits/ready" >/dev/null; then break; fi
    kill -0 "$fleet" || { cat "$log"; exit 1; }
    read -rt 0.3 <> <(:) || true
done

told=$("$venv/bin/python" "$here/classify.py" --url "$url" "$home"/pictures/*.png)
echo "$told" | tail -1
read -r right _ checked _ <<<"$(echo "$told" | tail -1)"
[ "$((right * 20))" -ge "$((checked * 19))" ]
