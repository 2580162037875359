#!/usr/bin/env bash
# Everything that only a GPU shows, in one call of a few minutes: builds, checks the kernels, times and profiles the
# workloads, and runs the main job. Results go to the folder given (default target/gpu).
#
#   benches/gpu.sh [FOLDER] [DEVICE]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/gpu}
device=${2:-auto}
mkdir -p "$out"
: >"$out/workloads.jsonl"

checked=0
failed() { echo "FAILED, or not in time: $*" >&2; checked=1; }

cargo build --release --examples --benches
cargo test --release --no-run --test kernels --test generator
target/release/examples/nietzsche --device list | tee "$out/devices.txt"

echo "== the kernels, against their twins"
ELMAN_DEVICE=$device ELMAN_REQUIRE_GPU=1 ELMAN_BOUNDS_CHECKS=1 timeout 150 \
    cargo test --release --test kernels --test generator >"$out/kernels.txt" 2>&1 || failed the kernels
grep -E "^test result|FAILED|panicked" "$out/kernels.txt" || true

bench() { timeout 60 cargo bench --quiet --bench workloads -- "$@" --device "$device"; }
measure() { bench "$@" --seconds 3 --json | tee -a "$out/workloads.jsonl" || failed "$@"; }
echo "== workloads"
for workload in w1 w2 w3 w4 w5 w6 w7; do measure "$workload"; done
measure w4 --lanes 1000
for cell in gru lstm; do measure w5 --cell "$cell"; done
echo "== the same, a dispatch for each step and one for all"
for workload in w1 w2 w3 w5 w6; do
    for stepwise in true false; do measure "$workload" --stepwise "$stepwise"; done
done

echo "== where the time goes"
for workload in w1 w2 w3; do
    bench "$workload" --seconds 1 --profile "$out/$workload.trace.json" | tee "$out/$workload.profile.txt" || failed profile
done

echo "== the main job"
time target/release/examples/nietzsche --device "$device" --out "$out/nietzsche" 2>&1 | tee "$out/nietzsche.txt" || failed main job

echo "== kernel by kernel, beside what the device can do at most"
ELMAN_DEVICE=$device timeout 90 cargo bench --quiet --bench kernels -- --verbose >"$out/kernel-times.txt" 2>&1 || failed kernel times
grep -E '^(at most|[a-z_, ]+/)|time:|thrpt:|median|panicked|wrong' "$out/kernel-times.txt" || true

echo "== weights in f16, where the adapter has it; then, in f32, without what only some adapters have"
for workload in w1 w2 w3 w5 w6; do
    measure "$workload" --precision f16
    measure "$workload" --baseline
done
exit "$checked"
