#!/usr/bin/env bash
# Collects everything that a GPU machine without Rust needs into one folder and FOLDER.tar.xz, under 48 MiB: the stripped programs with their kernels
# inside, golden files, the quickstart's assets, planted faults, and run.sh.
#   scripts/gpu_bundle.sh [FOLDER]      default: target/gpu-bundle
#   scp target/gpu-bundle.tar.xz gpu: && ssh gpu 'tar xJf gpu-bundle.tar.xz && gpu-bundle/run.sh'
# The GPU machine needs a driver (580 or later for CUDA 13 kernels), glibc as new as here, bash. Used there if they are found: compute-sanitizer,
# python3 with torch.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-target/gpu-bundle}
limit=$((48 * 1024 * 1024))
fail() { echo "gpu_bundle.sh: $1" >&2; exit 1; }

[ -n "${NVCC:-}" ] || scripts/get_nvcc.sh >/dev/null
export SDRRL_REQUIRE_NVCC=1
# One call, so that every program has the same kernels inside; cargo names the programs that it made.
made=$(cargo build --release --locked -p sdrrl -p sdrrl-emulator-tests --bin sdrrl --test all --test emulator --bench kernels --bench steps --bench generation \
    --message-format json | sed -n 's/.*"target":{"kind":\["\([a-z]*\)"\][^}]*"name":"\([a-z]*\)".*"executable":"\([^"]*\)".*/\1 \2 \3/p')

stage=$folder.partial
rm -rf "$stage"
mkdir -p "$stage/tests" "$stage/scripts" "$stage/benches"
copy() { # KIND NAME as FILE
    local from
    from=$(awk -v kind="$1" -v name="$2" '$1 == kind && $2 == name { print $3 }' <<<"$made" | tail -1)
    [ -n "$from" ] || fail "cargo built no $1 named $2"
    cp "$from" "$stage/$3"
    strip "$stage/$3"
}
copy bin sdrrl sdrrl
copy test all tests/all
copy test emulator tests/emulator
copy bench kernels bench-kernels
copy bench steps bench-steps
copy bench generation bench-generation
scripts/mutate_kernels.sh --fatbins "$stage/mutants"
cp -R tests/golden "$stage/tests/golden"
cp -R assets recipes "$stage/"
rm -rf "$stage/assets/downloads"
cp scripts/peer_*.py scripts/gpu_report.py scripts/calibrate.sh "$stage/scripts/"
cp benches/shapes.json "$stage/benches/"
cp scripts/gpu_session.sh "$stage/run.sh"
git describe --always --dirty >"$stage/commit" 2>/dev/null || echo unknown >"$stage/commit"

rm -rf "$folder"
mv "$stage" "$folder"
# The programs embed the same kernels: a window that holds several programs keeps one copy of them (23 MB instead of 56).
tar -cf - -C "$(dirname "$folder")" "$(basename "$folder")" | xz -T1 --lzma2=preset=6,dict=100MiB >"$folder.tar.xz"
bytes=$(stat -c %s "$folder.tar.xz")
[ "$bytes" -le "$limit" ] || fail "$folder.tar.xz has $bytes bytes, more than $limit: what grew? (du -a $folder | sort -n)"
echo "$folder.tar.xz: $((bytes / 1024 / 1024)) MiB, commit $(cat "$folder/commit"); unpack it on a machine with a GPU and run $(basename "$folder")/run.sh"
