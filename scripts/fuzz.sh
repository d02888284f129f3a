#!/usr/bin/env bash
# Builds every fuzz target and runs each for some time, one after the other, on one processor.
#
#   scripts/fuzz.sh                     # ten minutes each
#   scripts/fuzz.sh 60 chat_body pbtxt  # a minute each of two
#   scripts/fuzz.sh keep                # puts what the runs have found worth keeping into tests/fuzz/corpus
#
# Needs `cargo install cargo-fuzz` and a nightly toolchain. Prints a line for each target, and fails when one has found
# something: what broke it lies in tests/fuzz/artifacts then.
set -euo pipefail
cd "$(dirname "$0")/.."

# What runs find; only the part of it that `keep` chooses is in the repository.
found=tests/fuzz/target/corpus
options=(--fuzz-dir tests/fuzz --sanitizer none)

main() {
    local what=${1:-600} status=0 target
    local -a chosen=("${@:2}")
    [ ${#chosen[@]} -gt 0 ] || mapfile -t chosen < <(targets)
    cargo +nightly fuzz build "${options[@]}"
    for target in "${chosen[@]}"; do
        mkdir -p "$found/$target" "tests/fuzz/corpus/$target"
        if [ "$what" = keep ]; then
            keep "$target"
        else
            run "$target" "$what" || status=1
        fi
    done
    return "$status"
}

targets() {
    find tests/fuzz/fuzz_targets -name '*.rs' ! -name config.rs -printf '%f\n' | sed 's/\.rs$//' | sort
}

# Words that a target's input is made of, which a fuzzer would take long to guess.
dictionary() {
    local words
    case $1 in
        chat_body | completion_body | text_body) words=openai ;;
        fastchat_* | wire_json | infer_body) words=words ;;
        passed_stream | sse_decoder) words=events ;;
        config_file | peers_file) words=yaml ;;
        *) return 0 ;;
    esac
    echo "-dict=tests/fuzz/dictionaries/$words.dict"
}

run() {
    local target=$1 seconds=$2 log=tests/fuzz/target/$1.log result="nothing found" status=0 words
    words=$(dictionary "$target")
    cargo +nightly fuzz run "${options[@]}" "$target" "$found/$target" "tests/fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1 \
        ${words:+"$words"} >"$log" 2>&1 || status=1 result="FOUND: see $log"
    # `#1234 NEW cov: 567 ft: 890 corp: …`: edges of the program that were taken, and those with how often.
    printf '%-16s %12s executions  %-22s  %s\n' "$target" \
        "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
        "$(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -n 1)" "$result"
    return "$status"
}

# At most fifty inputs that together go wherever all do, as far as short ones can.
keep() {
    local target=$1 corpus=tests/fuzz/corpus/$1 new
    new=$(mktemp -d)
    cargo +nightly fuzz run "${options[@]}" "$target" "$new" "$found/$target" "$corpus" -- \
        -set_cover_merge=1 -max_len=300 >/dev/null 2>&1
    find "$corpus" -type f ! -name 'seed-*' -delete
    # A name is a hash, so that these are as good as any other fifty.
    find "$new" -type f | sort | head -n 50 | xargs -r -I{} cp {} "$corpus/"
    rm -r "$new"
    printf '%-16s %s inputs kept\n' "$target" "$(find "$corpus" -type f | wc -l)"
}

main "$@"
