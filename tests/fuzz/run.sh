#!/usr/bin/env bash
# run.sh SECONDS [TARGET]: runs each fuzz target, or one, for so long. Needs a C++ compiler and Rust; no nightly.
# A crash prints its input's path under tests/fuzz/target/; `run.sh 0 TARGET FILE` runs that one input again.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:?usage: run.sh SECONDS [TARGET [FILE]]}
targets=${2:-"frames requests batch wal group_formats coordinator raft_frame"}
host=$(rustc -vV | sed -n 's/^host: //p')
# Coverage for libFuzzer, without sanitizers, which need nightly.
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags="$flags -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
RUSTFLAGS="$flags --cfg fuzzing" cargo build --quiet --release --target "$host"
for target in $targets; do
  if [ $# -ge 3 ]; then
    "target/$host/release/$target" "$3"
    continue
  fi
  corpus=target/corpus/$target
  mkdir -p "$corpus" "target/crashes"
  "target/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=4096 \
    -print_final_stats=1 -verbosity=0 -artifact_prefix="target/crashes/$target-" "$corpus" 2>&1 |
    { grep -E 'stat::number_of_executed_units|SUMMARY|panicked|ERROR|artifact|Test unit' || true; } ||
    { echo "fuzz target $target failed" >&2; exit 1; }
done
