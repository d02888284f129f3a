#!/usr/bin/env bash
# Everything that must hold besides the tests. `scripts/install-tools.sh` gets what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

main() {
    step cargo fmt --check
    step cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS=-Dwarnings step cargo doc --workspace --no-deps
    step cargo deny check --hide-inclusion-graph bans licenses sources
    check_advisories
    check_shell
    check_paths
    echo "all checks passed"
}

step() {
    echo "+ $*"
    "$@"
}

# The database of advisories is a git repository, which only an open network reaches.
check_advisories() {
    if cargo deny fetch db 2>/dev/null; then
        step cargo deny check advisories
    else
        echo "not checked: advisories, for their database cannot be reached from here"
    fi
}

check_shell() {
    if ! command -v shellcheck >/dev/null; then
        echo "not checked: shell scripts, for shellcheck is not installed"
        return
    fi
    find scripts -name '*.sh' -exec shellcheck .ci/run {} +
}

# A path of somebody's machine tells other people nothing, and exporters like to leave theirs in model files.
check_paths() {
    if git grep --no-index --exclude-standard --text -nE '/(root|work|Users)/' -- . | cut -c 1-200; then
        echo "the lines above name paths of somebody's machine" >&2
        exit 1
    fi
}

main
