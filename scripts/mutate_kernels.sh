#!/usr/bin/env bash
# Plants faults into the project's own kernels, one at a time, and shows that the kernel suite finds each: a table fault | found by. Exits with 1 if
# one survives, if a pattern no longer matches its source, or if the kernel suite fails without a fault.
#
# A changed kernel file is compiled to a shared object as build/host.rs compiles it, and the test program loads it in place of its own
# (SDRRL_TEST_KERNELS), so that nothing else is built or linked again. Usage: scripts/mutate_kernels.sh [words of a fault's name]
#
# scripts/mutate_kernels.sh --fatbins FOLDER runs nothing: it compiles each changed file with nvcc for sm_90a into FOLDER/NUMBER, as SDRRL_FATBINS takes it,
# and writes FOLDER/list.tsv (number, fault, its cases, what the emulator said when it ran last here), for scripts/gpu_session.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
fatbins=""
if [ "${1:-}" = --fatbins ]; then
  fatbins=${2:?a folder}
  shift 2
fi
only=${1:-}
work=target/mutants
said=target/mutants.tsv     # fault, what the emulator said; kept between runs
rm -rf "$work"
mkdir -p "$work"

if [ -n "$fatbins" ]; then
  rm -rf "$fatbins"
  mkdir -p "$fatbins"
  nvcc=${NVCC:-$(command -v nvcc || echo target/nvcc/nvidia/cu13/bin/nvcc)}
  "$nvcc" --version >/dev/null || { echo "mutate_kernels: no nvcc: run scripts/get_nvcc.sh" >&2; exit 1; }
elif [ -n "${SDRRL_TEST_BINARY:-}" ]; then
  binary=$SDRRL_TEST_BINARY
else
  binary=$(cargo test --release --all-features --test all --no-run 2>&1 | sed -n 's/.*Executable tests\/all.rs (\(.*\))/\1/p')
fi
[ -n "$fatbins" ] || [ -x "$binary" ] || { echo "mutate_kernels: cargo built no test program" >&2; exit 1; }

# compile FOLDER KERNEL.cu OUT.so: the flags of build/host.rs; symbols of the object itself win over the program's.
compile() {
  "${CXX:-g++}" -shared -fPIC -std=c++17 -O1 -xc++ -fno-strict-aliasing -Wno-psabi -fstack-clash-protection -Wno-unknown-pragmas -fsanitize=thread \
    --param=tsan-instrument-func-entry-exit=0 -fno-gnu-unique -I"$1/include" -Ikernels/emulator/cpp "$1/$2" -nostdlib -Wl,-Bsymbolic -o "$3"
}
# tests OBJECT LOG CASES...: true if they pass; a hang is a failure.
tests() {
  local object=$1 log=$2
  shift 2
  SDRRL_TEST_KERNELS=$PWD/$object RUST_BACKTRACE=0 timeout 300 "$binary" "$@" >"$log" 2>&1
}

# mutate FOLDER SOURCE FROM TO: the kernels with one text changed, in FOLDER.
mutate() {
  local text rest
  mkdir -p "$1"
  cp -r kernels/include kernels/sm90 "$1"
  cp kernels/*.cu "$1"
  text=$(<"kernels/$2")
  rest=${text#*"$3"}
  if [ "$rest" = "$text" ] || [ "${rest#*"$3"}" != "$rest" ]; then
    echo "mutate_kernels: '$3' must occur once in kernels/$2" >&2
    exit 1
  fi
  printf '%s\n' "${text%%"$3"*}$4$rest" >"$1/$2"
}

declare -A sound
survivors=0
planted=0
# plant NAME SOURCE FROM TO KERNEL.cu CASES...: SOURCE is the file with the fault, KERNEL.cu the file to compile (SOURCE or one that includes it).
plant() {
  local name=$1 source=$2 from=$3 to=$4 kernel=$5
  shift 5
  [[ $name == *"$only"* ]] || return 0
  planted=$((planted + 1))
  local folder=$work/$planted log=$work/$planted.log
  mutate "$folder" "$source" "$from" "$to"
  if [ -n "$fatbins" ]; then
    # Two at a time: nvcc takes seconds for the larger files.
    [ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n
    mkdir -p "$(dirname "$fatbins/$planted/$kernel")"
    "$nvcc" -fatbin -O3 -std=c++17 --expt-relaxed-constexpr --compress-mode=size -gencode=arch=compute_90a,code=sm_90a -I "$folder/include" \
      -o "$fatbins/$planted/${kernel%.cu}.fatbin" "$folder/$kernel" >"$log" 2>&1 || { cat "$log" >&2; touch "$work/failed"; } &
    printf '%s\t%s\t%s\t%s\n' "$planted" "$name" "$*" "$(awk -F'\t' -v name="$name" '$1 == name { found = $2 } END { print found }' "$said" 2>/dev/null)" >>"$fatbins/list.tsv"
    return
  fi
  # Without a fault, through the same loading, the cases pass.
  if [ -z "${sound[$kernel $*]:-}" ]; then
    local control=$work/control_${kernel//\//_}
    [ -f "$control.so" ] || compile kernels "$kernel" "$control.so"
    if ! tests "$control.so" "$control.log" "$@" || ! grep -q 'test result: ok. [1-9]' "$control.log"; then
      tail -20 "$control.log" >&2
      echo "mutate_kernels: $* fail with $kernel as it is" >&2
      exit 1
    fi
    sound[$kernel $*]=1
  fi
  compile "$folder" "$kernel" "$folder.so"
  if tests "$folder.so" "$log" "$@"; then
    survivors=$((survivors + 1))
    echo "| $name | SURVIVED |"
  else
    local report
    report=$(grep -m1 -oE 'kernel [a-z0-9_]+, block.*|[a-z0-9 _]+: (relative error|element) .*|[a-z0-9_]+ \[[0-9, ]+\] (F32|Bf16): .*|assertion .*' "$log" || tail -1 "$log")
    echo "| $name | ${report:0:150} |"
    printf '%s\t%s\n' "$name" "${report:0:150}" >>"$said"
  fi
}

[ -n "$fatbins" ] || { echo "| fault | found by |"; echo "| --- | --- |"; }
plant "segment mean: the last row is left out" segment_mean.cu 'for (uint32_t i = s.begin; i < s.end; i++) sum' 'for (uint32_t i = s.begin; i + 1 < s.end; i++) sum' \
  segment_mean.cu kernels::table::segment_mean
plant "segment mean: a row of the next document" segment_mean.cu 'for (uint32_t i = s.begin; i < s.end; i++) dinp' 'for (uint32_t i = s.begin; i <= s.end; i++) dinp' \
  segment_mean.cu kernels::table::segment_mean
plant "maximum: no barrier before the scratch is used again" include/reduce.cuh $'scratch[lane] : -INFINITY);\n  __syncthreads();' \
  'scratch[lane] : -INFINITY);' cross_entropy.cu kernels::training::loss
plant "sum: shuffles of half a warp" include/reduce.cuh 'v += __shfl_xor_sync(FULL_MASK, v, o)' 'v += __shfl_xor_sync(0xffffu, v, o)' \
  cross_entropy.cu kernels::training::loss_f32
plant "loss: one column too many" cross_entropy.cu 'c < vocab; c += THREADS) top =' 'c <= vocab; c += THREADS) top =' cross_entropy.cu kernels::training::loss_f32
plant "loss: gradient before the target's logit is read" cross_entropy.cu $'  __syncthreads();        // dlogits' '  // dlogits' \
  cross_entropy.cu kernels::training::loss_f32
plant "kl: the base's maximum left out of its normaliser" kl_divergence.cu 'base_sum += expf(z[c] - base_top)' 'base_sum += expf(z[c] - top)' \
  kl_divergence.cu kernels::table::kl_divergence::checks::linear_kl_divergence
plant "kl: gradient before the target's logit is read" kl_divergence.cu $'  __syncthreads();        // dlogits' '  // dlogits' \
  kl_divergence.cu kernels::table::kl_divergence::checks::linear_kl_divergence
plant "kl: the reverse divergence's gradient" kl_divergence.cu 'soft * (p - kept - out * p));' 'soft * (kept + out * p - p));' kl_divergence.cu kernels::table::kl_divergence::checks::linear_kl_divergence
plant "kl: the base's logits are not capped" kl_divergence.cu 'z[c] = soft_cap<float>(z[c], cap); }' '}' \
  kl_divergence.cu kernels::table::kl_divergence::checks::linear_kl_divergence_capped
clipped=kernels::table::kl_divergence::checks::linear_kl_divergence_clipped
plant "kl: a column above the clip keeps its gradient" kl_divergence.cu 'float kept = clipped && term > clip ? 0.0f : q;' 'float kept = q;' kl_divergence.cu $clipped
plant "kl: the share above the clip is left out of the gradient" kl_divergence.cu '(p - kept - out * p)' '(p - kept)' kl_divergence.cu $clipped
plant "kl: the share above the clip is each thread's own" kl_divergence.cu $'    out = block_sum(out, scratch);\n' '' kl_divergence.cu $clipped
plant "kl: the clipped divergence is the whole one" kl_divergence.cu 'fminf(term, clip)' 'term' kl_divergence.cu $clipped
likeliest=kernels::table::top_k_divergence::checks::linear_top_k_divergence
plant "top-k: the kept logits stay in the row" top_k_divergence.cu $'    x[ids[j]] = -INFINITY;\n' '' top_k_divergence.cu $likeliest
plant "top-k: the target's logit is read after it was moved" top_k_divergence.cu $'  __syncthreads();        // every thread' '  // every thread' top_k_divergence.cu $likeliest
plant "top-k: the bucket is left out of the divergence" top_k_divergence.cu 'divergence + bucket_term(log_q[k], log_rest)' 'divergence' top_k_divergence.cu $likeliest
plant "top-k: the rest's gradient leaves the bucket out" top_k_divergence.cu ' - soft * expf(log_q[k])) / rest_sum' ') / rest_sum' top_k_divergence.cu $likeliest
plant "top-k: the rest's gradient overtakes that of the kept" top_k_divergence.cu $'    __syncthreads();      // those' '    // those' top_k_divergence.cu $likeliest
plant "top-k: the logits are not capped" top_k_divergence.cu 'x[c] = soft_cap<float>(x[c], cap);' ';' top_k_divergence.cu ${likeliest}_capped
plant "gemm: one cp.async group too few waited for" gemm.cu 'cp_async_wait<STAGES - 2>();' 'cp_async_wait<STAGES - 1>();' \
  gemm.cu kernels::gemm::gemm_bf16_rows_of_16_bytes
plant "gemm: no barrier in the stage loop" gemm.cu $'    cp_async_wait<STAGES - 2>();\n    __syncthreads();' '    cp_async_wait<STAGES - 2>();' \
  gemm.cu kernels::gemm::gemm_bf16_rows_of_16_bytes
plant "gemm: ragged rows are not masked" gemm.cu 'bool inside = r0 + r < rows && c0 + c < cols;' 'bool inside = c0 + c < cols;' \
  gemm.cu kernels::gemm::gemm_bf16_rows_of_16_bytes
plant "gemm: the last column's neighbour is stored too" gemm.cu 'bool two = col + 1 < g.n;' 'bool two = true;' gemm.cu kernels::gemm::gemm_bf16_odd_rows
plant "gemm: rows of b swizzled otherwise than read" gemm.cu 'ldmatrix_x4(f, s.b.at(c + lane % 8 + lane / 16 * 8, kk + lane / 8 % 2 * 8))' \
  'ldmatrix_x4(f, s.b.at(c + lane % 8 + lane / 16 * 8, 0) + kk + lane / 8 % 2 * 8)' gemm.cu kernels::gemm::gemm_bf16_rows_of_16_bytes
plant "hopper: wrong parity of the empty barriers" sm90/gemm.cu 'mbar_wait(&s.empty[st], phase ^ 1);' 'mbar_wait(&s.empty[st], phase);' \
  sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_nt
plant "hopper: bytes of b not expected" sm90/gemm.cu '(BM + BN) * BK * 2' 'BM * BK * 2' sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_nt
plant "hopper: no fence before the TMA store" sm90/gemm.cu $'  fence_proxy_async();\n' $'\n' sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_nt
plant "hopper: a stage is freed before its product has read it" sm90/gemm.cu 'wgmma_wait<1>();     // the stage' '// the stage' \
  sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_nt
plant "hopper: no named barrier after the store's wait" sm90/gemm.cu $'// what was in the box is stored\n    group_barrier(group);' \
  '// what was in the box is stored' sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_nt
plant "hopper: the tail's scale without the wait for it" sm90/gemm.cu $'      wgmma_wait<0>();\n      wgmma_done(acc);' '      wgmma_done(acc);' \
  sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_tail
plant "hopper: an end of the tail one product short" sm90/gemm.cu 'kk * 16 < depth; kk++' 'kk * 16 + 15 < depth; kk++' sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_tail
plant "hopper: the addend is read before it has come" sm90/gemm.cu 'if (h % 2 == 0) mbar_wait(&s.full[at.stage], at.phase);' ';' \
  sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_epilogue_nt
plant "hopper: one store too many may still read its box" sm90/gemm.cu 'BN == 64 ? 0 : 1' 'BN == 64 ? 0 : 2' sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_nt
plant "hopper: the last group has as many rows as the others" sm90/gemm.cu 'min(GROUP, tiles_m - first)' 'GROUP' sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_groups
plant "gemm: the last part of K is as long as the others" gemm.cu 'g.k = min(rows, g.k - first);' 'g.k = rows;' gemm.cu kernels::gemm::gemm_bf16_sums_in_parts
plant "hopper: the epilogue's swizzle is off by one row" sm90/gemm.cu '(chunk ^ row % 8) * 8' '(chunk ^ (row + 1) % 8) * 8' \
  sm90/gemm.cu kernels::gemm::gemm_bf16_hopper_nt
plant "attention: keys of the next document" attention.cu 'x = col < keys && row < queries' 'x = row < queries' attention.cu kernels::attention::cross_attention_bf16
plant "attention: the window is one key too wide" include/attention.cuh 'q - k < a.window));' 'q - k <= a.window));' attention.cu kernels::attention::attention_bf16_window
plant "attention: a document's tiles begin where its predecessor's may end" include/attention.cuh 'cu[min(at, documents)] / size + at <= tile' \
  'cu[min(at, documents)] / size <= tile' attention.cu kernels::attention::attention_of_many_documents
plant "attention: the second step of the search forgets the first" include/attention.cuh 'document += before * step;' 'document = before * step;' \
  attention.cu kernels::attention::attention_of_many_documents
plant "attention: rows of the next document are loaded" include/attention.cuh 'bool inside = r < rows && c < hs;' 'bool inside = c < hs;' \
  attention_backward.cu kernels::attention::attention_bf16_64
plant "attention: no barrier before a tile is overwritten" attention.cu '__syncthreads();      // the tile before' '// the tile before' \
  attention.cu kernels::attention::attention_bf16_64
plant "attention f32: probabilities without __syncwarp" attention.cu "__syncwarp();         // a row's" "// a row's" attention.cu kernels::attention::attention_f32_64
plant "attention backward: log-sum-exp past the document" attention_backward.cu \
  $'        s.lse[threadIdx.x] = inside ? lse[at] : 0.0f;\n        s.delta[threadIdx.x] = inside ? delta[at] : 0.0f;\n      }\n      cp_async_commit();' \
  $'        s.lse[threadIdx.x] = lse[at];\n        s.delta[threadIdx.x] = inside ? delta[at] : 0.0f;\n      }\n      cp_async_commit();' \
  attention_backward.cu kernels::attention::attention_bf16_64
plant "decoding: warps' parts joined without a barrier" decode_attention.cu $'      __syncthreads();\n      join(' '      join(' \
  decode_attention.cu kernels::attention::decode_attention_f32
plant "decoding: the next head without a barrier" decode_attention.cu '__syncthreads();         // the next head' '// the next head' \
  decode_attention.cu kernels::attention::decode_attention_bf16_shared
plant "decoding: a key past the last" decode_attention.cu 'bool inside = own + u * GROUPS < end;' 'bool inside = own + u * GROUPS <= end;' \
  decode_attention.cu kernels::attention::decode_attention_bf16_128
plant "few rows: ragged rows are not masked" gemm.cu 'bool inside = r0 + r + j < rows && c0 + c < cols;' 'bool inside = c0 + c < cols;' \
  gemm.cu kernels::gemm::gemm_few_rows_1_of_16_bytes
plant "few rows: fragments of b from the wrong columns" gemm.cu 's.b.at(wn + lane % 8, kk + lane / 8 % 2 * 8)' 's.b.at(wn + lane % 8, kk + lane / 16 * 8)' \
  gemm.cu kernels::gemm::gemm_few_rows_16
plant "few rows: one cp.async group too few waited for" gemm.cu 'cp_async_wait<FEW_STAGES - 2>();' 'cp_async_wait<FEW_STAGES - 1>();' \
  gemm.cu kernels::gemm::gemm_few_rows_f32_1
plant "rmsnorm: the gain's offset is left out of the gradient" rmsnorm.cu 'd.v[i] += g.v[i] * (weight[c + i] + offset) * r' 'd.v[i] += g.v[i] * weight[c + i] * r' \
  rmsnorm.cu kernels::rowwise::rmsnorm_of_heads_f32
plant "rmsnorm: the gain's offset twice" rmsnorm.cu 'v.v[i] * r * (weight[c + i] + offset)' 'v.v[i] * r * (weight[c + i] + 2 * offset)' \
  rmsnorm.cu kernels::rowwise::rmsnorm_of_heads_bf16
plant "geglu: the slope of the inner polynomial" include/activation.cuh '0.134145f' '0.044715f' swiglu.cu kernels::rowwise::geglu_f32
plant "geglu: dup by the slope" swiglu.cu 'd.v[i] * x * F::share(x)' 'd.v[i] * F::slope(x)' swiglu.cu kernels::rowwise::geglu_bf16
plant "softcap: no division by the cap" include/activation.cuh 'cap * tanhf(__fdividef(x, cap))' 'cap * tanhf(x)' activation.cu kernels::rowwise::softcap_f32
plant "attention: scores capped before they are scaled" attention.cu 'soft_cap<bf16>(x * a.scale, a.cap)' 'soft_cap<bf16>(x, a.cap) * a.scale' \
  attention.cu kernels::attention::attention_bf16_cap
plant "attention of 256: a value tile too near the keys" attention.cu 'smem.k, sv = smem.v' 'smem.k, sv = smem.k + KEYS<D> - 1' attention.cu kernels::attention::attention_bf16_256
plant "attention backward: dq without the cap's slope" attention_backward.cu 'p[0][j][e] *= soft_cap_slope(y, a.cap);' ';' \
  attention_backward.cu kernels::attention::attention_bf16_cap
plant "attention backward f32: dk without the cap's slope" attention_backward.cu '(dot<D>(s.b[ty], s.y[c]) - s.delta[c]) * slope' '(dot<D>(s.b[ty], s.y[c]) - s.delta[c])' \
  attention_backward.cu kernels::attention::attention_f32_cap
plant "attention backward of 256: values are not loaded for dk" attention_backward.cu 'if (DK) load_rows' 'if (DK && DV) load_rows' \
  attention_backward.cu kernels::attention::attention_bf16_256
plant "decoding: the cap in the wrong base" decode_attention.cu 'cap *= LOG2E;' ';' decode_attention.cu kernels::attention::decode_attention_bf16_cap
plant "loss: the gradient without the cap's slope" cross_entropy.cu 'cap > 0 ? d * soft_cap_slope(y, cap) : d' 'd' cross_entropy.cu kernels::training::loss_capped_f32
plant "embedding: the gradient without the scale" embedding.cu 'sum += scale * to_float' 'sum += to_float' embedding.cu kernels::rowwise::embedding_f32
plant "DoRA: a large rank's first factors stay" dora.cu 'if (c0 == 0 || rank > RANKS)' 'if (c0 == 0 && k0 == 0)' dora.cu kernels::training::dora_bf16
plant "DoRA: no barrier before factors are overwritten" dora.cu '__syncthreads();              // those before' '// those before' dora.cu kernels::training::dora_bf16_whole
plant "DoRA: the magnitude's gradient of the scaled dout" dora.cu 'sum = fmaf(d, to_float(z[at]), sum);' 'sum = fmaf(d * gain, to_float(z[at]), sum);' \
  dora.cu kernels::training::dora_f32
plant "AdamW: the last element of a block is left out" adamw.cu 'size_t last = first + BLOCK < e.n ? first + BLOCK : size_t(e.n);' \
  'size_t last = (first + BLOCK < e.n ? first + BLOCK : size_t(e.n)) - 1;' adamw.cu kernels::training::adamw
plant "AdamW of 8 bits: a block's largest is that of its first warp" adamw8.cu 'for (int w = 0; w < WARPS; w++) x' 'for (int w = 0; w < 1; w++) x' \
  adamw8.cu kernels::table::optimizers::checks::adamw8
plant "AdamW of 8 bits: the second moment by the signed values" adamw8.cu 'v0 = mul_rn(maps[CODES + (old_v' 'v0 = mul_rn(maps[(old_v' \
  adamw8.cu kernels::table::optimizers::checks::adamw8
plant "AdamW of 8 bits: no barrier before the warps' largest are read" adamw8.cu $'= x;\n  __syncthreads();\n#pragma' $'= x;\n#pragma' \
  adamw8.cu kernels::table::optimizers::checks::adamw8
plant "Adafactor: columns of every other row" adafactor.cu 'for (int r = lane; r < rows; r += LANES) {' 'for (int r = lane; r < rows; r += 2 * LANES) {' \
  adafactor.cu kernels::table::optimizers::checks::adafactor
plant "Adafactor: lanes' sums are added without a barrier" adafactor.cu $'  all[threadIdx.x] = sum;\n  __syncthreads();' '  all[threadIdx.x] = sum;' \
  adafactor.cu kernels::table::optimizers::checks::adafactor
plant "Adafactor: a row by the sum of all rows, not their mean" adafactor.cu '*mean = float(sum / rows);' '*mean = float(sum);' \
  adafactor.cu kernels::table::optimizers::checks::adafactor
plant "Adafactor: updates are never scaled down" adafactor.cu 'fmaxf(1.0f, rms)' '1.0f' adafactor.cu kernels::table::optimizers::checks::adafactor
plant "Adafactor: a vector's last block is left out" adafactor.cu $'  if (i < n) {\n    float g' $'  if (i < n / THREADS * THREADS) {\n    float g' \
  adafactor.cu kernels::table::optimizers::checks::adafactor_vector
plant "Muon: plain momentum, not Nesterov's" muon.cu 'update[i] = g + momentum * (m - g);' 'update[i] = m;' muon.cu kernels::table::optimizers::checks::muon
plant "Muon: no decay" muon.cu 'param[i] * keep - rate' 'param[i] - rate' muon.cu kernels::table::optimizers::checks::muon
plant "dropout: every position draws the same" dropout.cu 'uint32_t(c), rows[2 * r + 1], rows[2 * r], 0' 'uint32_t(c), 0, rows[2 * r], 0' \
  dropout.cu kernels::table::dropout::checks::dropout
plant "dropout: the rest is what is kept" dropout.cu 'if (rest) y = x - y;' ';' dropout.cu kernels::table::dropout::checks::dropout
plant "dropout: the last columns are left out" dropout.cu 'if (c * DRAW + k >= size_t(cols)) break;' 'if (c * DRAW + DRAW > size_t(cols)) break;' \
  dropout.cu kernels::table::dropout::checks::dropout
plant "many casts: the neighbour's factor" rows.cu 'if (table[mid].first_block <= blockIdx.x) low = mid;' 'if (table[mid].first_block < blockIdx.x) low = mid;' \
  rows.cu kernels::table::casts::checks::cast_many
plant "many casts: beyond the end" rows.cu 'if (i + k < last) e.out' 'e.out' rows.cu kernels::table::casts::checks::cast_many
plant "many casts: no factor" rows.cu 'from_float<bf16>(e.inp[i + k] * e.scale)' 'from_float<bf16>(e.inp[i + k])' rows.cu kernels::table::casts::checks::cast_many
plant "swiglu: the forward's result from its gradient" swiglu.cu 'out.v[i] = F::value(x) * u.v[i];' 'out.v[i] = F::value(x) * d.v[i];' swiglu.cu kernels::rowwise::swiglu
plant "rmsnorm: a gradient that is not added to is" rmsnorm.cu 'if (add) load_some(d,' 'load_some(d,' rmsnorm.cu kernels::rowwise::rmsnorm
plant "route: the last of equal logits first" experts.cu '(0xffffffffu - uint32_t(e))' 'uint32_t(e)' experts.cu kernels::table::experts
plant "route: the same expert twice" experts.cu 'if (item < last && item > best)' 'if (item > best)' experts.cu kernels::table::experts
plant "route: shares of all experts" experts.cu 'if (!normalised) {' 'if (normalised) {' experts.cu kernels::table::experts
plant "route: a token beyond the last" experts.cu 'float* shares, const float* logits, int normalised, int tokens, int experts, int picks) {
  int token = blockIdx.x * TOKENS + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (token >= tokens) return;
  const' 'float* shares, const float* logits, int normalised, int tokens, int experts, int picks) {
  int token = blockIdx.x * TOKENS + threadIdx.x / 32, lane = threadIdx.x % 32;
  const' experts.cu kernels::table::experts
plant "route backward: no share of the sum" experts.cu 'share * (d - dot)' 'share * d' experts.cu kernels::table::experts
plant "weigh backward: a row's share is its own" experts.cu 'if (threadIdx.x == 0) dshares[pair] = dot;' 'if (threadIdx.x == 0) dshares[blockIdx.x] = dot;' experts.cu kernels::table::experts
plant "weigh backward: every thread writes" experts.cu 'if (threadIdx.x == 0) dshares[pair] = dot;' 'dshares[pair] = dot + threadIdx.x;' experts.cu kernels::table::experts
plant "sum of slots: nothing is added to" experts.cu 'accumulate ? to_float(y[c]) + sum : sum' 'sum' experts.cu kernels::table::experts
[ "$planted" -gt 0 ] || { echo "mutate_kernels: no fault is called '$only'" >&2; exit 1; }
if [ -n "$fatbins" ]; then
  wait
  [ ! -e "$work/failed" ] || exit 1
  echo "$planted faults compiled into $fatbins"
  exit 0
fi
echo "$planted faults planted, $survivors survived"
[ "$survivors" = 0 ]
