#!/usr/bin/env bash
# Runs all tests, those on the GPU included. Where no adapter answers and it may, it installs a software Vulkan driver
# (Debian and Ubuntu: mesa-vulkan-drivers); elsewhere, install one by hand.
#
#   tests/run.sh [--driver lavapipe|swiftshader] [--limits webgpu] [--validation] [--soak] [--with-python] [arguments of cargo test]
#   tests/run.sh --isa
#
# --isa         what a compiler for AMD's GPUs makes of the kernels, without a GPU, and no other test: it fails if one keeps anything
#               outside registers. Where that driver cannot be had, it says so loudly, and skips
# --driver      that software driver and no other, installed where it may be
# --limits      every adapter with WebGPU's default limits and no optional features (ELMAN_LIMITS)
# --validation  under Vulkan's validation layers, any message of which is a failure
# --soak        the tests of long runs alone, in their full form: kills, lost devices, full disks, memory
# --with-python models go to PyTorch and onnxruntime and come back too, and published networks are fetched: by the interpreter that
#               ELMAN_PYTHON names (with pip, torch 2.5.1, numpy, safetensors, onnx, onnxruntime, h5py), or one in a virtual environment,
#               target/python, which is made if it is not there
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "$1" >&2
    exit 1
}

driver= validation= python= isa= soak=()
long=(--test soak --test recovery --test memory --test flat_memory --test submissions --test threads -- --include-ignored --nocapture --test-threads 1)
while [ $# -gt 0 ]; do
    case $1 in
        --driver) driver=${2:?} && shift 2 ;;
        --limits) export ELMAN_LIMITS=${2:?} && shift 2 ;;
        --validation) validation=yes && shift ;;
        --isa) isa=yes && shift ;;
        --with-python) python=yes && shift ;;
        --soak) export ELMAN_SOAK=1 && soak=("${long[@]}") && shift ;;
        *) break ;;
    esac
done

# Of each driver: Debian's package, its file for Vulkan's loader, and what its adapter's name has.
case $driver in
    "") package=mesa-vulkan-drivers files='' adapter='MiB per binding' ;;
    lavapipe) package=mesa-vulkan-drivers files='/usr/share/vulkan/icd.d/lvp_icd*.json' adapter=llvmpipe ;;
    swiftshader) package=chromium files='/usr/lib/chromium*/vk_swiftshader_icd.json' adapter=SwiftShader ;;
    *) fail "there is no driver $driver; lavapipe and swiftshader there are" ;;
esac

# Mesa's device-selection layer prints errors where there is no desktop session.
[ -n "${XDG_RUNTIME_DIR:-}" ] || export NODEVICE_SELECT=1

install() {
    command -v apt-get >/dev/null || return 0
    local sudo=
    [ "$(id -u)" -eq 0 ] || sudo="sudo -n"
    echo "installing $1"
    $sudo apt-get update -qq && $sudo apt-get install -y -qq "$1" || true
}

if [ -n "$isa" ]; then
    radeon() { compgen -G '/usr/share/vulkan/icd.d/radeon_icd*.json' | sed -n 1p | grep .; }
    which=(-- --include-ignored --nocapture)
    radeon >/dev/null || install mesa-vulkan-drivers
    if file=$(radeon); then
        export VK_DRIVER_FILES=$file VK_ICD_FILENAMES=$file
    else
        echo "NOT TESTED: registers of the kernels on AMD's GPUs: Mesa's driver (mesa-vulkan-drivers) is not there, nor can it be installed" >&2
        [ -z "${ELMAN_REQUIRE_ALL:-}" ] || exit 1
        which=()
    fi
    exec cargo test --release --manifest-path tests/isa/Cargo.toml --target-dir target "${which[@]}"
fi

if [ -n "$python" ]; then
    has_packages() { "$ELMAN_PYTHON" -c 'import pip, torch, numpy, safetensors, onnx, onnxruntime, h5py' 2>/dev/null; }
    if [ -n "${ELMAN_PYTHON:-}" ]; then
        has_packages || fail "$ELMAN_PYTHON, which ELMAN_PYTHON names, lacks pip, torch, numpy, safetensors, onnx, onnxruntime or h5py"
    else
        export ELMAN_PYTHON=$PWD/target/python/bin/python
        if ! has_packages; then
            python3 -m venv target/python
            "$ELMAN_PYTHON" -m pip install --quiet torch==2.5.1 numpy safetensors onnx onnxruntime h5py
        fi
    fi
fi
if [ -n "$python" ] && [ -z "${ELMAN_PUBLISHED:-}" ]; then
    export ELMAN_PUBLISHED=$PWD/target/published
    mkdir -p "$ELMAN_PUBLISHED"
    made() { [ -f "$ELMAN_PUBLISHED/$1" ]; }
    fixture() { "$ELMAN_PYTHON" "tests/fixtures/published/$1.py" "${@:2}"; }
    download() { "$ELMAN_PYTHON" -m pip download --quiet --no-deps --dest "$ELMAN_PUBLISHED" "$1"; }
    if ! made noisy.wav; then
        command -v espeak-ng >/dev/null || install espeak-ng
        if command -v espeak-ng >/dev/null; then
            fixture speech "$ELMAN_PUBLISHED"
        else
            echo "NO SPEECH: espeak-ng is not there, nor can it be installed: published networks are not tested on recordings" >&2
        fi
    fi
    if ! made silero.safetensors || { made speech.wav && ! made silero_speech.safetensors; }; then
        download silero-vad==6.2.3
        fixture silero "$ELMAN_PUBLISHED"/silero_vad-*.whl "$ELMAN_PUBLISHED"
    fi
    if made noisy.wav && ! made rnnoise_frames.safetensors; then
        cargo run --quiet --release --manifest-path tests/fixtures/published/rnnoise/Cargo.toml --target-dir target/rnnoise -- \
            "$ELMAN_PUBLISHED/noisy.wav" "$ELMAN_PUBLISHED"
    fi
    if ! made g2p.safetensors; then
        download g2p-en==2.1.0
        fixture g2p "$ELMAN_PUBLISHED"/g2p_en-*.whl "$ELMAN_PUBLISHED"
    fi
    if ! made textgenrnn.safetensors; then
        download textgenrnn==2.0.0
        fixture textgenrnn "$ELMAN_PUBLISHED"/textgenrnn-*.tar.gz "$ELMAN_PUBLISHED"
    fi
fi

cargo build --release --workspace --all-features --examples

# Whether the adapter that `gpu` opens is the one that is wanted.
adapter_answers() {
    if [ -n "$files" ]; then
        VK_DRIVER_FILES=$(compgen -G "$files" | sed -n 1p) || return 1
        # Loaders before 1.3.207 know the second name alone.
        export VK_DRIVER_FILES VK_ICD_FILENAMES=$VK_DRIVER_FILES
    fi
    target/release/examples/nietzsche --device list | sed -n 1,2p | grep "$adapter" >/dev/null
}

adapter_answers || install "$package"
adapter_answers || fail "no ${driver:-GPU} adapter answers, nor does one of the package $package: the GPU tests cannot run"

# Every test that needs a GPU fails without one; shaders run with bounds checks. ELMAN_REQUIRE_ALL=1, which CI sets, makes it an
# error too where the adapter does not have what a test is of: f16, subgroups, more workgroup memory.
export ELMAN_REQUIRE_GPU=1 ELMAN_BOUNDS_CHECKS=1
[ -n "$validation" ] || exec cargo test --release --workspace --all-features "$@" "${soak[@]}"

[ -e /usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json ] || install vulkan-validationlayers

# The layer would write a file anew in each process: all of them, those that tests start included, write into one pipe.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkfifo "$folder/pipe"
exec 9<>"$folder/pipe"
cat >"$folder/vk_layer_settings.txt" <<END
khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG
khronos_validation.log_filename = $folder/pipe
khronos_validation.report_flags = error,warn
khronos_validation.enables = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT
END
export VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation VK_LAYER_SETTINGS_PATH="$folder/vk_layer_settings.txt"

# Runs a command and keeps what the layer says meanwhile.
watched() {
    local status=0
    sed -n '/^== end$/q;p' <"$folder/pipe" 9>&- >"$folder/messages" &
    "$@" || status=$?
    echo "== end" >&9
    wait $!
    return $status
}

echo "== a mistake, which the layer must find"
watched cargo test --release --workspace --all-features --test validation -- --ignored
grep -q 'VUID-vkDestroyDevice-device-' "$folder/messages" ||
    fail "the validation layer does not find a mistake: is vulkan-validationlayers installed?"

status=0
watched cargo test --release --workspace --all-features "$@" "${soak[@]}" || status=$?
if [ -s "$folder/messages" ]; then
    cat "$folder/messages"
    echo "== kinds of messages"
    grep -oE '(VUID|UNASSIGNED|SYNC)-[A-Za-z0-9-]+' "$folder/messages" | sort -u
    fail "the validation layer has something to say"
fi
[ "$status" -ne 0 ] || echo "the validation layer has nothing to say"
exit $status
