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

cargo build --release --examples --benches
target/release/examples/nietzsche --device list | tee "$out/devices.txt"

echo "== the kernels, against their twins"
ELMAN_DEVICE=$device ELMAN_REQUIRE_GPU=1 timeout 150 cargo test --release --test kernels --test generator 2>&1 |
    tee "$out/kernels.txt" | grep -E "^test result|FAILED|panicked" || true

echo "== workloads"
bench() { cargo bench --quiet --bench workloads -- "$@" --device "$device"; }
for workload in w1 w2 w3 w4 w5 w6; do
    timeout 60 cargo bench --quiet --bench workloads -- "$workload" --device "$device" --seconds 3 --json |
        tee -a "$out/workloads.jsonl" || echo "$workload failed" | tee -a "$out/workloads.jsonl"
done
bench w4 --lanes 1000 --seconds 3 --json | tee -a "$out/workloads.jsonl"
for cell in gru lstm; do bench w5 --cell "$cell" --seconds 3 --json | tee -a "$out/workloads.jsonl"; done

echo "== where the time goes"
for workload in w1 w2 w3; do
    bench "$workload" --seconds 1 --profile "$out/$workload.trace.json" | tee "$out/$workload.profile.txt"
done

echo "== the main job"
time target/release/examples/nietzsche --device "$device" --out "$out/nietzsche" 2>&1 | tee "$out/nietzsche.txt"
