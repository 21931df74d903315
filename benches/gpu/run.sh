#!/bin/sh
# Compares a GPU with the CPU on one model, with a binary that was built elsewhere.
#
#   benches/gpu/run.sh BINARY [MODEL_DIR] [RESULT.json]
#
# BINARY is `device_bench`, from: cargo build --release -p statehouse-cuda --features cuda --bin device_bench
# MODEL_DIR defaults to examples/bank. The GPU host needs the NVIDIA driver (580 or newer) and, for compiling
# kernels at run time, NVRTC and the CUDA headers: a toolkit, or the PyPI wheels nvidia-cuda-nvrtc,
# nvidia-cuda-runtime and nvidia-cuda-cccl (no newer than the driver) unpacked under CUDA_PATH.
# Exit codes: 0 done, 1 wrong usage or a broken model, 2 the devices disagree, 3 there is no GPU.
set -eu

if [ $# -lt 1 ] || [ ! -x "$1" ]; then
    echo "usage: $0 BINARY [MODEL_DIR] [RESULT.json]; BINARY must be executable" >&2
    exit 1
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
binary=$1
model=${2:-$root/examples/bank}
result=${3:-$root/benches/results/gpu.json}

if command -v nvidia-smi >/dev/null 2>&1; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
fi
if [ -n "${CUDA_PATH:-}" ]; then
    export LD_LIBRARY_PATH="$CUDA_PATH/lib:$CUDA_PATH/lib64:${LD_LIBRARY_PATH:-}"
fi
mkdir -p "$(dirname "$result")"
exec "$binary" "$model" --json "$result"
