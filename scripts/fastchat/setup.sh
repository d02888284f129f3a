#!/bin/sh
# Installs the real FastChat (fschat 0.2.36) and what it needs into a virtual
# environment; does nothing when that is done already. Needs Debian 12 with its
# package registry, and PyPI.
#
#   scripts/fastchat/setup.sh              prints the environment's folder last
#   MUSTER_FASTCHAT_VENV=DIR ...           another folder
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${MUSTER_FASTCHAT_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/muster/fastchat-venv}
stamp=$venv/installed-requirements.txt

# PyTorch comes from Debian: PyPI's default build brings gigabytes of CUDA.
debian="python3-torch python3-venv python3-numpy python3-psutil python3-requests python3-yaml python3-attr python3-certifi"
missing=
for p in $debian; do
    dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
if [ -n "$missing" ]; then
    root=
    [ "$(id -u)" = 0 ] || root=sudo
    $root apt-get update
    # shellcheck disable=SC2086 # a list of names
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
fi

if ! cmp -s "$here/requirements.txt" "$stamp"; then
    # Debian's own Python, since its PyTorch is built for that one; --clear, so
    # that nothing of an older list stays behind.
    /usr/bin/python3 -m venv --clear --system-site-packages "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"
    # An empty LOGDIR keeps FastChat's modules from leaving log files here.
    LOGDIR='' "$venv/bin/python" -c "import fastchat.serve.controller, fastchat.serve.model_worker, fastchat.serve.openai_api_server, accelerate, onnx, openai"
    cp "$here/requirements.txt" "$stamp"
fi
echo "$venv"
