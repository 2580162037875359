#!/usr/bin/env bash
# Runs all tests, those on the GPU included. Where no adapter answers and it may, it installs a software Vulkan driver
# (Debian and Ubuntu: mesa-vulkan-drivers); elsewhere, install one by hand.
#
#   tests/run.sh [arguments of cargo test]
set -euo pipefail
cd "$(dirname "$0")/.."

# Mesa's device-selection layer prints errors where there is no desktop session.
[ -n "${XDG_RUNTIME_DIR:-}" ] || export NODEVICE_SELECT=1

cargo build --release --examples

adapter_answers() {
    target/release/examples/nietzsche --device list | grep 'MiB per binding' >/dev/null
}

if ! adapter_answers && command -v apt-get >/dev/null; then
    sudo=
    [ "$(id -u)" -eq 0 ] || sudo="sudo -n"
    echo "no GPU adapter answers: installing mesa-vulkan-drivers"
    $sudo apt-get update -qq && $sudo apt-get install -y -qq mesa-vulkan-drivers || true
fi
if ! adapter_answers; then
    echo "no GPU adapter answers, and no software Vulkan driver could be installed: the GPU tests cannot run" >&2
    exit 1
fi

# Every test that needs a GPU fails without one; shaders run with bounds checks. ELMAN_REQUIRE_ALL=1, which CI sets, makes it an
# error too where the adapter does not have what a test is of: f16, subgroups, more workgroup memory.
export ELMAN_REQUIRE_GPU=1 ELMAN_BOUNDS_CHECKS=1
exec cargo test --release "$@"
