#!/bin/sh
# Builds every fuzz target and runs each for some time, one after the other, on one processor.
#
#   scripts/fuzz.sh                     # ten minutes each
#   scripts/fuzz.sh 60 chat_body pbtxt  # a minute each of two
#   scripts/fuzz.sh keep                # puts what the runs have found worth keeping into tests/fuzz/corpus
#
# Needs `cargo install cargo-fuzz` and a nightly toolchain. Prints a line for each target, and fails when one has found
# something: what broke it lies in tests/fuzz/artifacts then.
set -eu
cd "$(dirname "$0")/.."

what=${1:-600}
[ $# -gt 0 ] && shift
all=$(cd tests/fuzz/fuzz_targets && ls ./*.rs | sed 's|^\./||; s|\.rs$||' | grep -v '^config$')
targets=${*:-$all}
# What runs find; only the part of it that `keep` chooses is in the repository.
found=tests/fuzz/target/corpus
fuzz() { cargo +nightly fuzz "$@"; }
options="--fuzz-dir tests/fuzz --sanitizer none"

# Words that a target's input is made of, which a fuzzer would take long to guess.
dictionary() {
    case $1 in
        chat_body | completion_body | text_body) echo openai ;;
        fastchat_* | wire_json | infer_body) echo words ;;
        passed_stream | sse_decoder) echo events ;;
        config_file | peers_file) echo yaml ;;
    esac
}

run() {
    mkdir -p "$found/$1" "tests/fuzz/corpus/$1"
    words=$(dictionary "$1")
    log=tests/fuzz/target/$1.log
    failed=0
    # shellcheck disable=SC2086
    fuzz run $options "$1" "$found/$1" "tests/fuzz/corpus/$1" -- -max_total_time="$what" -timeout=10 -rss_limit_mb=2048 \
        -max_len=4096 -print_final_stats=1 ${words:+-dict=tests/fuzz/dictionaries/$words.dict} >"$log" 2>&1 || failed=1
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    # `#1234 NEW cov: 567 ft: 890 corp: …`: edges of the program that were taken, and those with how often.
    last=$(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -n 1)
    result=$([ "$failed" = 0 ] && echo "nothing found" || echo "FOUND: see $log")
    printf '%-16s %12s executions  %-22s  %s\n' "$1" "${executions:-?}" "$last" "$result"
    return "$failed"
}

# At most fifty inputs that together go wherever all do, as far as short ones can.
keep() {
    new=$(mktemp -d)
    # shellcheck disable=SC2086
    fuzz run $options "$1" "$new" "$found/$1" "tests/fuzz/corpus/$1" -- -set_cover_merge=1 -max_len=300 >/dev/null 2>&1
    mkdir -p "tests/fuzz/corpus/$1"
    rm -f "tests/fuzz/corpus/$1"/[0-9a-f]*
    # A name is a hash, so that these are as good as any other fifty.
    find "$new" -type f | sort | head -n 50 | xargs -r -I{} cp {} "tests/fuzz/corpus/$1/"
    rm -r "$new"
    printf '%-16s %s inputs kept\n' "$1" "$(ls "tests/fuzz/corpus/$1" | wc -l)"
}

# shellcheck disable=SC2086
fuzz build $options
status=0
for target in $targets; do
    if [ "$what" = keep ]; then keep "$target"; else run "$target" || status=1; fi
done
exit $status
