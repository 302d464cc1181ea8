#!/usr/bin/env bash
# Builds a libcuda.so.1 that implements CUDA's driver over the emulator (kernels/emulator/driver), so that everything for a GPU can be rehearsed without one:
#   scripts/rehearsal_driver.sh [FOLDER]                                   default: target/rehearsal
#   LD_LIBRARY_PATH=target/rehearsal sdrrl doctor
#   LD_LIBRARY_PATH=target/rehearsal scripts/gpu_session.sh --small
# SDRRL_REHEARSAL_CHECKS=1 turns the race detector on, SDRRL_REHEARSAL_MIB sets the memory of the GPU that is none. Needs a C++ compiler and nvcc's headers (scripts/get_nvcc.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-target/rehearsal}
scripts/rehearsal_nccl.sh "$folder"
emulator=kernels/emulator
header="" cxx=${CXX:-c++}
# The places where build/nvcc.rs looks for nvcc.
nvcc=$(readlink -f "$(command -v "${NVCC:-nvcc}")" || true)
for home in "${nvcc%/bin/nvcc}" "${CUDA_HOME:-}" "${CUDA_PATH:-}" "${CUDA_ROOT:-}" /usr/local/cuda "${CARGO_TARGET_DIR:-target}/nvcc/nvidia/cu13" target/nvcc/nvidia/cu13 /usr; do
    [ -n "$home" ] && [ -f "$home/include/cuda.h" ] && header=$home/include && break
done
[ -n "$header" ] || { echo "rehearsal_driver.sh: no cuda.h: run scripts/get_nvcc.sh" >&2; exit 1; }
sources=(kernels/*.cu kernels/sm90/*.cu $emulator/tests/kernels/*.cu $emulator/cpp/*.cpp $emulator/driver/libcuda.cpp)
# Nothing has changed since it was built?
if [ -f "$folder/libcuda.so.1" ] && [ -z "$(find kernels scripts/rehearsal_driver.sh -newer "$folder/libcuda.so.1" -type f)" ]; then
    exit 0
fi
objects=$folder/objects
mkdir -p "$objects"
common=(-c -fPIC -std=c++17 -fvisibility=hidden -fno-strict-aliasing -Wno-psabi -I"$emulator/cpp")
# As build/host.rs compiles kernels: the hooks of -fsanitize=thread are the emulator's.
kernel=(-xc++ -O1 -ffp-contract=off -Wno-unknown-pragmas -fsanitize=thread -Ikernels/include)
for flag in -fstack-clash-protection --param=tsan-instrument-func-entry-exit=0; do
    if "$cxx" -Werror "$flag" -xc++ -c /dev/null -o /dev/null 2>/dev/null; then kernel+=("$flag"); fi
done
compile() {
    local source=$1 flags=(-O2 -isystem "$header")
    [[ $source == *.cu ]] && flags=("${kernel[@]}")
    "$cxx" "${common[@]}" "${flags[@]}" "$source" -o "$objects/${source//\//_}.o"
}
running=0
for source in "${sources[@]}"; do
    compile "$source" &
    running=$((running + 1))
    if [ $running -ge "$(nproc)" ]; then wait -n; running=$((running - 1)); fi
done
while [ $running -gt 0 ]; do wait -n; running=$((running - 1)); done
"$cxx" -shared -Wl,-soname,libcuda.so.1 -Wl,-z,defs "$objects"/*.o -ldl -lpthread -o "$folder/libcuda.so.1.partial"
mv "$folder/libcuda.so.1.partial" "$folder/libcuda.so.1"
rm -r "$objects"
