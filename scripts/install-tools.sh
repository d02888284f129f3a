#!/usr/bin/env bash
# Installs the cargo subcommands that check.sh and test.sh use, where they are missing; needs crates.io only.
#
# They are built unoptimised: on two cores cargo-deny takes 45 seconds and cargo-nextest two minutes, much less than
# with their release profiles, and the one still checks this workspace in a second, the other only waits for tests.
set -euo pipefail

install() {
    echo "building $*" >&2
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug "$@"
}

cargo deny --version 2>/dev/null || install cargo-deny@0.20.2
cargo nextest --version 2>/dev/null || install cargo-nextest@0.9.151 --no-default-features --features default-no-update
