// Attention forward: out = softmax(scale q k^T) v with log-sum-exp saved, over packed documents of any length; causal (with a sliding window) or
// full, queries and keys of different documents' lengths (cross), grouped heads, heads of up to 256 elements, scores capped by tanh where wanted (Gemma 2).
// Online softmax (Dao 2022).
//
// bf16: a block takes 64 queries of one head, a warp 16 of them; keys and values come in tiles of 32 or 64 rows through cp.async; both products on
// tensor cores. f32: a block takes 32 queries, 8 threads each; keys in tiles of 16; FMA units.
// FLOP: 4 HS for each visible (query, key) pair and head. Bytes: q, out once, k and v once a query tile. No bank conflicts for HS of 64, 128 and 256 in bf16.
// A query that sees no key gets 0 and -infinity.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one key tile at a time, no overlap of copies | not measured on a GPU yet | | |
#include "attention.cuh"

namespace {
constexpr int BQ = 64, THREADS = 128;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

// One online softmax step of a warp's scores: masks them, makes them probabilities relative to the new maximum, rescales the sums.
template <bool CAP, int BKV, int D>
DEV void softmax_step(float (&s)[1][BKV / 8][4], float (&acc)[1][D / 8][4], float (&top)[2], float (&sum)[2], const AttentionArgs& a, int q0, int k0, int queries, int keys) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int row = q0 + lane / 4 + 8 * h;
    float m = top[h];
#pragma unroll
    for (int j = 0; j < BKV / 8; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int col = k0 + j * 8 + lane % 4 * 2 + e;
        float& x = s[0][j][2 * h + e];
        x = col < keys && row < queries && visible(a, row, col) ? (CAP ? soft_cap<bf16>(x * a.scale, a.cap) : x * a.scale) * LOG2E : -INFINITY;
        m = fmaxf(m, x);
      }
    m = fmaxf(m, __shfl_xor_sync(FULL_MASK, m, 1));
    m = fmaxf(m, __shfl_xor_sync(FULL_MASK, m, 2));
    float base = m == -INFINITY ? 0.0f : m, correction = exp2_approx(top[h] - base), total = 0;
#pragma unroll
    for (int j = 0; j < BKV / 8; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float& x = s[0][j][2 * h + e];
        x = exp2_approx(x - base);
        total += x;
      }
    total += __shfl_xor_sync(FULL_MASK, total, 1);
    total += __shfl_xor_sync(FULL_MASK, total, 2);
    sum[h] = sum[h] * correction + total;
    top[h] = m;
#pragma unroll
    for (int j = 0; j < D / 8; j++) { acc[0][j][2 * h] *= correction; acc[0][j][2 * h + 1] *= correction; }
  }
}

template <int D> constexpr int KEYS = D <= 64 ? 64 : 32;
// At 256 more than a launch has without asking: dynamic shared memory there.
template <int D> struct Smem { bf16 q[BQ][D + 8], k[KEYS<D>][D + 8], v[KEYS<D>][D + 8]; };
template <int D> DEV void forward(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const AttentionArgs& a, Smem<D>& smem) {
  constexpr int BKV = KEYS<D>;
  auto sq = smem.q, sk = smem.k, sv = smem.v;
  int document, first;
  if (!find_tile(a.cu_q, a.documents, blockIdx.x, BQ, document, first)) return;
  int head = blockIdx.y, group = head / (a.heads / a.kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int q_start = a.cu_q[document], k_start = a.cu_k[document], queries = a.cu_q[document + 1] - q_start, keys = a.cu_k[document + 1] - k_start;
  size_t q_pitch = size_t(a.heads) * a.hs, k_pitch = size_t(a.kv_heads) * a.hs;
  load_rows<BQ, D, THREADS>(sq, q + (q_start + first) * q_pitch + head * a.hs, queries - first, q_pitch, a.hs);
  cp_async_commit();
  float acc[1][D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  int from, to;
  key_range(a, first, min(first + BQ, queries), keys, from, to);
  for (int k0 = from / BKV * BKV; k0 < to; k0 += BKV) {
    __syncthreads();      // the tile before is read to its end
    load_rows<BKV, D, THREADS>(sk, k + (k_start + k0) * k_pitch + group * a.hs, keys - k0, k_pitch, a.hs);
    load_rows<BKV, D, THREADS>(sv, v + (k_start + k0) * k_pitch + group * a.hs, keys - k0, k_pitch, a.hs);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float s[1][BKV / 8][4] = {};
    multiply_transposed<BKV, D>(s, sq, warp * 16, sk);
    by_cap(a, [&](auto cap) { softmax_step<decltype(cap)::value, BKV, D>(s, acc, top, sum, a, first + warp * 16, k0, queries, keys); });
    multiply_rows<BKV, D>(acc, s, sv);
  }
  cp_async_wait<0>();
  float inverse[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int row = first + warp * 16 + lane / 4 + 8 * h;
    inverse[h] = sum[h] > 0 ? 1.0f / sum[h] : 0.0f;
    if (lane % 4 == 0 && row < queries) lse[size_t(head) * a.n_q + q_start + row] = sum[h] > 0 ? top[h] * LN2 + logf(sum[h]) : -INFINITY;
  }
  store_rows<D>(out + q_start * q_pitch + head * a.hs, acc, first + warp * 16, queries, q_pitch, a.hs, inverse[0], inverse[1]);
}

// ---- f32 ----
constexpr int FQ = 32, FK = 16, F_THREADS = 256;
template <int D> DEV void forward_f32(float* out, float* lse, const float* q, const float* k, const float* v, const AttentionArgs& a, uint8_t* smem) {
  auto sq = reinterpret_cast<float(*)[D + 4]>(smem);
  auto sk = sq + FQ, sv = sk + FK;
  auto sp = reinterpret_cast<float(*)[FK + 1]>(sv + FK);
  int document, first;
  if (!find_tile(a.cu_q, a.documents, blockIdx.x, FQ, document, first)) return;
  int head = blockIdx.y, group = head / (a.heads / a.kv_heads), ty = threadIdx.x / 8, tx = threadIdx.x % 8;
  int q_start = a.cu_q[document], k_start = a.cu_k[document], queries = a.cu_q[document + 1] - q_start, keys = a.cu_k[document + 1] - k_start;
  size_t q_pitch = size_t(a.heads) * a.hs, k_pitch = size_t(a.kv_heads) * a.hs;
  load_rows<FQ, D, F_THREADS>(sq, q + (q_start + first) * q_pitch + head * a.hs, queries - first, q_pitch, a.hs);
  float acc[D / 8] = {}, top = -INFINITY, sum = 0;
  int row = first + ty, from, to;
  key_range(a, first, min(first + FQ, queries), keys, from, to);
  for (int k0 = from / FK * FK; k0 < to; k0 += FK) {
    __syncthreads();
    load_rows<FK, D, F_THREADS>(sk, k + (k_start + k0) * k_pitch + group * a.hs, keys - k0, k_pitch, a.hs);
    load_rows<FK, D, F_THREADS>(sv, v + (k_start + k0) * k_pitch + group * a.hs, keys - k0, k_pitch, a.hs);
    __syncthreads();
    float s[FK / 8], m = top;
    bool capped = a.cap > 0;
#pragma unroll
    for (int j = 0; j < FK / 8; j++) {
      int key = k0 + tx + 8 * j;
      float dot = 0;
      for (int d = 0; d < D; d += 4) {
        float4 x = *reinterpret_cast<float4*>(&sq[ty][d]), y = *reinterpret_cast<float4*>(&sk[tx + 8 * j][d]);
        dot = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, dot))));
      }
      dot *= a.scale;
      if (capped) dot = soft_cap<float>(dot, a.cap);
      s[j] = key < keys && row < queries && visible(a, row, key) ? dot : -INFINITY;
      m = fmaxf(m, s[j]);
    }
#pragma unroll
    for (int o = 1; o < 8; o *= 2) m = fmaxf(m, __shfl_xor_sync(FULL_MASK, m, o));
    float base = m == -INFINITY ? 0.0f : m, correction = expf(top - base), total = 0;
#pragma unroll
    for (int j = 0; j < FK / 8; j++) { s[j] = expf(s[j] - base); total += s[j]; sp[ty][tx + 8 * j] = s[j]; }
#pragma unroll
    for (int o = 1; o < 8; o *= 2) total += __shfl_xor_sync(FULL_MASK, total, o);
    sum = sum * correction + total;
    top = m;
#pragma unroll
    for (int i = 0; i < D / 8; i++) acc[i] *= correction;
    __syncwarp();         // a row's probabilities are its own warp's
    for (int key = 0; key < FK; key++) {
      float p = sp[ty][key];
#pragma unroll
      for (int i = 0; i < D / 8; i += 4) {
        float4 x = *reinterpret_cast<float4*>(&sv[key][tx * 4 + i * 8]);
        acc[i] = fmaf(p, x.x, acc[i]); acc[i + 1] = fmaf(p, x.y, acc[i + 1]); acc[i + 2] = fmaf(p, x.z, acc[i + 2]); acc[i + 3] = fmaf(p, x.w, acc[i + 3]);
      }
    }
    __syncwarp();
  }
  if (row >= queries) return;
  float inverse = sum > 0 ? 1.0f / sum : 0.0f;
  if (tx == 0) lse[size_t(head) * a.n_q + q_start + row] = sum > 0 ? top + logf(sum) : -INFINITY;
#pragma unroll
  for (int i = 0; i < D / 8; i++) {
    int c = tx * 4 + i / 4 * 32 + i % 4;
    if (c < a.hs) out[(q_start + row) * q_pitch + head * a.hs + c] = acc[i] * inverse;
  }
}
}  // namespace

#define FORWARD_F32(D)                                                                                                                        \
  KERNEL(attention_forward_##D##_f32, F_THREADS, 1)(float* out, float* lse, const float* q, const float* k, const float* v, ATTENTION_ARGS) { \
    DYNAMIC_SHARED(smem);                                                                                                                     \
    forward_f32<D>(out, lse, q, k, v, ATTENTION_PACKED, smem);                                                                                \
  }                                                                                                                                           \
  EXPORT_KERNEL(attention_forward_##D##_f32, F_THREADS)                                                                                       \
  TILE(attention_forward_##D##_f32, FQ, 1)                                                                                                    \
  ATTENTION_SHARED(attention_forward_##D##_f32, sizeof(float) * ((FQ + 2 * FK) * (D + 4) + FQ * (FK + 1)))
#define FORWARD(D)                                                                                                                              \
  KERNEL(attention_forward_##D##_bf16, THREADS, 2)(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, ATTENTION_ARGS) {        \
    SHARED(Smem<D>, smem, [1]);                                                                                                                 \
    forward<D>(out, lse, q, k, v, ATTENTION_PACKED, smem[0]);                                                                                   \
  }                                                                                                                                             \
  EXPORT_KERNEL(attention_forward_##D##_bf16, THREADS)                                                                                          \
  TILE(attention_forward_##D##_bf16, BQ, 1)                                                                                                     \
  FORWARD_F32(D)
FORWARD(32)
FORWARD(64)
FORWARD(128)
KERNEL(attention_forward_256_bf16, THREADS, 2)(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, ATTENTION_ARGS) {
  DYNAMIC_SHARED(smem);
  forward<256>(out, lse, q, k, v, ATTENTION_PACKED, *reinterpret_cast<Smem<256>*>(smem));
}
EXPORT_KERNEL(attention_forward_256_bf16, THREADS)
TILE(attention_forward_256_bf16, BQ, 1)
ATTENTION_SHARED(attention_forward_256_bf16, sizeof(Smem<256>))
FORWARD_F32(256)
