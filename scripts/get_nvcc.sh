#!/usr/bin/env bash
# Installs nvcc 13.0 from Python packages, without root and without a GPU or driver: enough to compile kernels/*.cu.
#   scripts/get_nvcc.sh [FOLDER]      default folder: target/nvcc (ignored by git, found by build.rs without any variable)
# With another folder:  NVCC=$(scripts/get_nvcc.sh /opt/sdrrl-nvcc | tail -1) cargo build --release
# The last line on stdout is the absolute path of nvcc; everything else goes to stderr. About 300 MB.
# Needs: Linux, a host C++ compiler (g++), python3 with pip, venv or uv, and network access to the package index.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
folder=${1:-$repo/target/nvcc}
packages=('nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*')
nvcc_in=nvidia/cu13/bin/nvcc
marker=.made-by-get_nvcc

say() { echo "get_nvcc.sh: $1" >&2; }
fail() { say "$1"; exit 1; }

work=$(mktemp -d)
stage=""
trap 'rm -rf "$work" ${stage:+"$stage"}' EXIT

# Compiles a small kernel for both architectures; nvcc's messages are left in $work/log.
works() {
    [ -x "$1" ] || { echo "there is no $1" >"$work/log"; return 1; }
    cat >"$work/probe.cu" <<'CU'
#include <cuda_bf16.h>
extern "C" __global__ void probe(__nv_bfloat16* x) {
    x[threadIdx.x] = __float2bfloat16(__bfloat162float(x[threadIdx.x]) * 2.0f);
}
CU
    rm -f "$work/probe.fatbin"
    "$1" -fatbin -O3 -std=c++17 -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a \
        -o "$work/probe.fatbin" "$work/probe.cu" >"$work/log" 2>&1 && [ -s "$work/probe.fatbin" ]
}

# `pip install --target` needs no environment of its own, and is allowed where the system's Python is closed to pip.
choose_installer() {
    local pip_args=(install --quiet --disable-pip-version-check --no-warn-script-location --only-binary :all: --retries 2 --timeout 30)
    if python3 -m pip --version >/dev/null 2>&1; then
        installer=(python3 -m pip "${pip_args[@]}" --root-user-action ignore)
        # An old pip does not know that option.
        python3 -m pip install --help | grep -q -e --root-user-action || installer=(python3 -m pip "${pip_args[@]}")
    elif command -v uv >/dev/null; then
        installer=(uv pip install --quiet --only-binary :all: --python python3)
    elif python3 -m venv "$work/venv" >"$work/log" 2>&1; then
        installer=("$work/venv/bin/python" -m pip "${pip_args[@]}")
    else
        cat "$work/log" >&2
        fail "this python3 has neither pip nor a working venv, and there is no uv: install one of them (Debian: apt-get install python3-pip)"
    fi
}

if works "$folder/$nvcc_in"; then
    echo "$(cd "$folder" && pwd -P)/$nvcc_in"
    exit 0
fi

[ "$(uname -s)" = Linux ] || fail "the nvcc packages are for Linux; here install the CUDA toolkit and set NVCC"
command -v python3 >/dev/null || fail "there is no python3 (Debian: apt-get install python3 python3-pip)"
command -v gcc >/dev/null && command -v g++ >/dev/null || fail "nvcc needs a host C++ compiler, and there is no g++ (Debian: apt-get install g++)"
if [ -e "$folder" ] && [ ! -e "$folder/$marker" ] && [ -n "$(ls -A "$folder")" ]; then
    fail "$folder exists, holds no working nvcc and was not made by this script: remove it or name another folder"
fi
choose_installer

mkdir -p "$(dirname "$folder")"
folder=$(cd "$(dirname "$folder")" && pwd -P)/$(basename "$folder")
# Beside the folder, so that the last step is a rename: a run that is cut off leaves no half-installed nvcc.
stage=$(mktemp -d "$folder.partial.XXXXXX")
say "installing nvcc 13.0 into $folder (about 300 MB)"
"${installer[@]}" --target "$stage/root" "${packages[@]}" ||
    fail "could not install ${packages[*]} (messages above): is the package index reachable, and is pip recent (20.3 or newer)?"

# Only for looking into fatbins. Installed apart and merged: pip skips a folder (nvidia/) that the target already has.
if "${installer[@]}" --no-deps --target "$stage/cuobjdump" 'nvidia-cuda-cuobjdump>=13,<14' 2>"$work/log"; then
    cp -R "$stage/cuobjdump/." "$stage/root/"
else
    say "no cuobjdump (optional): $(tail -n 1 "$work/log")"
fi

works "$stage/root/$nvcc_in" || {
    cat "$work/log" >&2
    fail "the installed nvcc cannot compile a small kernel for sm_80 and sm_90a (its messages are above)"
}
touch "$stage/root/$marker"
chmod 755 "$stage/root"
rm -rf "$folder"
mv "$stage/root" "$folder"
# A build that found no nvcc would not look again: a newer folder time makes cargo run build.rs once more.
if [ "$folder" = "$repo/target/nvcc" ] && [ -d "$repo/kernels" ]; then touch "$repo/kernels"; fi
say "nvcc works: it compiled a small kernel for sm_80 and sm_90a"
echo "$folder/$nvcc_in"
