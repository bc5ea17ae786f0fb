#!/usr/bin/env bash
# profile.sh PID [SECONDS]: where a running process spends its CPU time, by thread and by function.
# Needs `perf` (Debian: linux-perf) and a build with frame pointers (.cargo/config.toml sees to it).
set -euo pipefail
pid=${1:?usage: profile.sh PID [SECONDS]} seconds=${2:-10}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# cpu-clock rather than cycles: virtual machines often have no hardware counters.
perf record -q -e cpu-clock -F 997 -g --call-graph fp -p "$pid" -o "$out/perf.data" -- sleep "$seconds"
echo "# by thread"
perf report -i "$out/perf.data" --no-children -g none --sort comm --stdio 2>/dev/null | grep -v '^#' | grep -v '^$' || true
echo "# by function (self)"
perf report -i "$out/perf.data" --no-children -g none --sort symbol --percent-limit 0.7 --stdio 2>/dev/null | grep -v '^#' | grep -v '^$' | head -60 || true
echo "# by function (with callees)"
perf report -i "$out/perf.data" --children -g none --sort symbol --percent-limit 2 --stdio 2>/dev/null | grep -v '^#' | grep -v '^$' | head -60 || true
