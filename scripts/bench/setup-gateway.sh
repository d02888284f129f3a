#!/usr/bin/env bash
# Gets the peers of gateway.py, each into an environment of its own; what is there already is left as it is. Wants Python
# 3.11 and PyPI, takes a minute and 0.3 GB. nginx comes from the system: where it is missing, this says how to get it.
#
#   scripts/bench/setup-gateway.sh [WORKDIR]      a folder outside of the repository
set -euo pipefail

main() {
    scripts=$(cd "$(dirname "$0")" && pwd)
    work=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/muster/bench}
    mkdir -p "$work"
    cd "$work"
    environment venv-router requirements-router.txt
    environment venv-fastchat requirements-fastchat.txt --no-deps -c "$scripts/../fastchat/requirements.txt"
    # An empty LOGDIR keeps FastChat's modules from leaving log files here.
    LOGDIR='' venv-fastchat/bin/python -c 'import fastchat.serve.controller, fastchat.serve.openai_api_server'
    command -v nginx >/dev/null || echo "nginx is missing; get it with: apt-get install nginx-light"
    echo "the others are there: $work"
}

# environment NAME REQUIREMENTS OPTION...
environment() {
    cmp -s "$scripts/$2" "$1/installed-requirements.txt" && return
    python3.11 -m venv --clear "$1"
    "$1/bin/pip" install --quiet --disable-pip-version-check "${@:3}" -r "$scripts/$2"
    cp "$scripts/$2" "$1/installed-requirements.txt"
}

main "$@"
