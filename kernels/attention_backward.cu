// Attention backward: dq, dk, dv from dout and the saved out and log-sum-exp (Dao 2023, algorithm 2), for everything attention.cu does.
//
// Three kernels, none of which adds to what another block writes, so that the bits depend on nothing but the inputs:
//   delta (NH, N) = rowsum(dout out);
//   dq: a block takes queries and runs over keys: P = exp(S - lse), dS = P (dout v^T - delta), dq = scale dS k;
//   dk, dv: a block takes keys of one key head and runs over the queries of all its query heads: dv = P^T dout, dk = scale dS^T q.
// Seven products where a version with atomics has five. bf16 on tensor cores, blocks of 64 rows against tiles of 32; f32 on FMA units, 32 against 16.
// Heads of 256: tiles half as long, so that all fits into 99 KiB of shared memory, and in bf16 dk and dv by a kernel each, whose sums fill the registers
// (eight products). Where scores are capped, dS is multiplied by the cap's slope, 1 - (S / cap)^2.
// FLOP: 14 HS for each visible pair and head. Bytes: each block reads its rows once and the other side's once.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one tile at a time, no overlap of copies | not measured on a GPU yet | | |
#include "attention.cuh"

namespace {
constexpr int ROWS = 64, THREADS = 128, DELTA_THREADS = 256, DELTA_ROWS = DELTA_THREADS / 32;
template <int D> constexpr int STREAMED = D <= 128 ? 32 : 16;
constexpr float LOG2E = 1.4426950408889634f;

template <class T> DEV void rowsum(float* delta, const T* dout, const T* out, int n, int heads, int hs) {
  int row = blockIdx.x * DELTA_ROWS + threadIdx.x / 32, head = blockIdx.y, lane = threadIdx.x % 32;
  if (row >= n) return;
  size_t at = (size_t(row) * heads + head) * hs;
  float sum = 0;
  for (int c = lane; c < hs; c += 32) sum += to_float(dout[at + c]) * to_float(out[at + c]);
  sum = warp_sum(sum);
  if (lane == 0) delta[size_t(head) * n + row] = sum;
}

// The two resident and the two streamed tiles, and what belongs to the streamed queries.
template <int D> struct Smem {
  bf16 a[ROWS][D + 8], b[ROWS][D + 8], x[STREAMED<D>][D + 8], y[STREAMED<D>][D + 8];
  float lse[STREAMED<D>], delta[STREAMED<D>];
};

template <int D> DEV void backward_q(bf16* dq, const bf16* dout, const float* lse, const float* delta, const bf16* q, const bf16* k, const bf16* v, const AttentionArgs& a, uint8_t* raw) {
  constexpr int TILE = STREAMED<D>;
  Smem<D>& s = *reinterpret_cast<Smem<D>*>(raw);
  int document, first;
  if (!find_tile(a.cu_q, a.documents, blockIdx.x, ROWS, document, first)) return;
  int head = blockIdx.y, group = head / (a.heads / a.kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int q_start = a.cu_q[document], k_start = a.cu_k[document], queries = a.cu_q[document + 1] - q_start, keys = a.cu_k[document + 1] - k_start;
  size_t q_pitch = size_t(a.heads) * a.hs, k_pitch = size_t(a.kv_heads) * a.hs, q_at = (q_start + first) * q_pitch + head * a.hs;
  load_rows<ROWS, D, THREADS>(s.a, q + q_at, queries - first, q_pitch, a.hs);
  load_rows<ROWS, D, THREADS>(s.b, dout + q_at, queries - first, q_pitch, a.hs);
  cp_async_commit();
  float own_lse[2], own_delta[2], acc[1][D / 8][4] = {};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int row = first + warp * 16 + lane / 4 + 8 * h;
    size_t at = size_t(head) * a.n_q + q_start + row;
    own_lse[h] = row < queries ? lse[at] : 0.0f;
    own_delta[h] = row < queries ? delta[at] : 0.0f;
  }
  int from, to;
  key_range(a, first, min(first + ROWS, queries), keys, from, to);
  for (int k0 = from / TILE * TILE; k0 < to; k0 += TILE) {
    __syncthreads();
    load_rows<TILE, D, THREADS>(s.x, k + (k_start + k0) * k_pitch + group * a.hs, keys - k0, k_pitch, a.hs);
    load_rows<TILE, D, THREADS>(s.y, v + (k_start + k0) * k_pitch + group * a.hs, keys - k0, k_pitch, a.hs);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float p[1][TILE / 8][4] = {}, dp[1][TILE / 8][4] = {};
    multiply_transposed<TILE, D>(p, s.a, warp * 16, s.x);
    multiply_transposed<TILE, D>(dp, s.b, warp * 16, s.y);
    by_cap(a, [&](auto cap) {
#pragma unroll
      for (int j = 0; j < TILE / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          int row = first + warp * 16 + lane / 4 + e / 2 * 8, col = k0 + j * 8 + lane % 4 * 2 + e % 2;
          bool seen = col < keys && row < queries && visible(a, row, col);
          float y = p[0][j][e] * a.scale;
          if (decltype(cap)::value) y = soft_cap<bf16>(y, a.cap);
          float x = seen ? exp2_approx((y - own_lse[e / 2]) * LOG2E) : 0.0f;
          p[0][j][e] = x * (dp[0][j][e] - own_delta[e / 2]);
          if (decltype(cap)::value) p[0][j][e] *= soft_cap_slope(y, a.cap);
        }
    });
    multiply_rows<TILE, D>(acc, p, s.x);
  }
  cp_async_wait<0>();
  store_rows<D>(dq + q_start * q_pitch + head * a.hs, acc, first + warp * 16, queries, q_pitch, a.hs, a.scale, a.scale);
}

// DK and DV: which of the two.
template <int D, bool DK, bool DV> DEV void backward_kv(bf16* dk, bf16* dv, const bf16* dout, const float* lse, const float* delta, const bf16* q, const bf16* k, const bf16* v, const AttentionArgs& a, uint8_t* raw) {
  constexpr int TILE = STREAMED<D>;
  Smem<D>& s = *reinterpret_cast<Smem<D>*>(raw);
  int document, first;
  if (!find_tile(a.cu_k, a.documents, blockIdx.x, ROWS, document, first)) return;
  int group = blockIdx.y, per_group = a.heads / a.kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int q_start = a.cu_q[document], k_start = a.cu_k[document], queries = a.cu_q[document + 1] - q_start, keys = a.cu_k[document + 1] - k_start;
  size_t q_pitch = size_t(a.heads) * a.hs, k_pitch = size_t(a.kv_heads) * a.hs, k_at = (k_start + first) * k_pitch + group * a.hs;
  load_rows<ROWS, D, THREADS>(s.a, k + k_at, keys - first, k_pitch, a.hs);
  if (DK) load_rows<ROWS, D, THREADS>(s.b, v + k_at, keys - first, k_pitch, a.hs);
  cp_async_commit();
  float dk_acc[1][D / 8][4] = {}, dv_acc[1][D / 8][4] = {};
  int from, to;
  query_range(a, first, min(first + ROWS, keys), queries, from, to);
  for (int head = group * per_group; head < (group + 1) * per_group; head++)
    for (int q0 = from / TILE * TILE; q0 < to; q0 += TILE) {
      __syncthreads();
      size_t q_at = (q_start + q0) * q_pitch + head * a.hs;
      load_rows<TILE, D, THREADS>(s.x, q + q_at, queries - q0, q_pitch, a.hs);
      load_rows<TILE, D, THREADS>(s.y, dout + q_at, queries - q0, q_pitch, a.hs);
      if (threadIdx.x < TILE) {
        bool inside = q0 + int(threadIdx.x) < queries;
        size_t at = size_t(head) * a.n_q + q_start + q0 + threadIdx.x;
        s.lse[threadIdx.x] = inside ? lse[at] : 0.0f;
        s.delta[threadIdx.x] = inside ? delta[at] : 0.0f;
      }
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
      float p[1][TILE / 8][4] = {}, ds[1][TILE / 8][4] = {};
      multiply_transposed<TILE, D>(p, s.a, warp * 16, s.x);
      if (DK) multiply_transposed<TILE, D>(ds, s.b, warp * 16, s.y);
      by_cap(a, [&](auto cap) {
#pragma unroll
        for (int j = 0; j < TILE / 8; j++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            int key = first + warp * 16 + lane / 4 + e / 2 * 8, c = j * 8 + lane % 4 * 2 + e % 2, row = q0 + c;
            bool seen = key < keys && row < queries && visible(a, row, key);
            float y = p[0][j][e] * a.scale;
            if (decltype(cap)::value) y = soft_cap<bf16>(y, a.cap);
            p[0][j][e] = seen ? exp2_approx((y - s.lse[c]) * LOG2E) : 0.0f;
            ds[0][j][e] = p[0][j][e] * (ds[0][j][e] - s.delta[c]);
            if (decltype(cap)::value) ds[0][j][e] *= soft_cap_slope(y, a.cap);
          }
      });
      if (DV) multiply_rows<TILE, D>(dv_acc, p, s.y);
      if (DK) multiply_rows<TILE, D>(dk_acc, ds, s.x);
    }
  cp_async_wait<0>();
  size_t base = k_start * k_pitch + group * a.hs;
  if (DK) store_rows<D>(dk + base, dk_acc, first + warp * 16, keys, k_pitch, a.hs, a.scale, a.scale);
  if (DV) store_rows<D>(dv + base, dv_acc, first + warp * 16, keys, k_pitch, a.hs, 1.0f, 1.0f);
}

// ---- f32: 32 resident rows, 8 threads each; 16 streamed rows ----
constexpr int FROWS = 32, F_THREADS = 256;
template <int D> constexpr int FSTREAMED = D <= 128 ? 16 : 8;
template <int D> struct SmemF32 {
  static constexpr int TILE = FSTREAMED<D>;
  float a[FROWS][D + 4], b[FROWS][D + 4], x[TILE][D + 4], y[TILE][D + 4], p[FROWS][TILE + 1], ds[FROWS][TILE + 1];
  float lse[TILE], delta[TILE];
};
template <int D> DEV float dot(const float (&x)[D + 4], const float (&y)[D + 4]) {
  float sum = 0;
  for (int d = 0; d < D; d += 4) {
    float4 u = *reinterpret_cast<const float4*>(&x[d]), w = *reinterpret_cast<const float4*>(&y[d]);
    sum = fmaf(u.x, w.x, fmaf(u.y, w.y, fmaf(u.z, w.z, fmaf(u.w, w.w, sum))));
  }
  return sum;
}
// acc (this thread's D / 8 columns) += sum over the tile of p[row][c] tile[c]
template <int D> DEV void accumulate(float (&acc)[D / 8], const float (&p)[FSTREAMED<D> + 1], float (*tile)[D + 4]) {
  int tx = threadIdx.x % 8;
  for (int c = 0; c < FSTREAMED<D>; c++) {
    float f = p[c];
#pragma unroll
    for (int i = 0; i < D / 8; i += 4) {
      float4 x = *reinterpret_cast<float4*>(&tile[c][tx * 4 + i * 8]);
      acc[i] = fmaf(f, x.x, acc[i]); acc[i + 1] = fmaf(f, x.y, acc[i + 1]); acc[i + 2] = fmaf(f, x.z, acc[i + 2]); acc[i + 3] = fmaf(f, x.w, acc[i + 3]);
    }
  }
}
template <int D> DEV void store_row(float* out, const float (&acc)[D / 8], int hs, float factor) {
#pragma unroll
  for (int i = 0; i < D / 8; i++) {
    int c = threadIdx.x % 8 * 4 + i / 4 * 32 + i % 4;
    if (c < hs) out[c] = acc[i] * factor;
  }
}
template <int D> DEV void backward_q_f32(float* dq, const float* dout, const float* lse, const float* delta, const float* q, const float* k, const float* v, const AttentionArgs& a, uint8_t* raw) {
  constexpr int FTILE = FSTREAMED<D>;
  SmemF32<D>& s = *reinterpret_cast<SmemF32<D>*>(raw);
  int document, first;
  if (!find_tile(a.cu_q, a.documents, blockIdx.x, FROWS, document, first)) return;
  int head = blockIdx.y, group = head / (a.heads / a.kv_heads), ty = threadIdx.x / 8, tx = threadIdx.x % 8;
  int q_start = a.cu_q[document], k_start = a.cu_k[document], queries = a.cu_q[document + 1] - q_start, keys = a.cu_k[document + 1] - k_start;
  size_t q_pitch = size_t(a.heads) * a.hs, k_pitch = size_t(a.kv_heads) * a.hs, q_at = (q_start + first) * q_pitch + head * a.hs;
  load_rows<FROWS, D, F_THREADS>(s.a, q + q_at, queries - first, q_pitch, a.hs);
  load_rows<FROWS, D, F_THREADS>(s.b, dout + q_at, queries - first, q_pitch, a.hs);
  int row = first + ty, from, to;
  size_t at = size_t(head) * a.n_q + q_start + row;
  float own_lse = row < queries ? lse[at] : 0.0f, own_delta = row < queries ? delta[at] : 0.0f, acc[D / 8] = {};
  key_range(a, first, min(first + FROWS, queries), keys, from, to);
  for (int k0 = from / FTILE * FTILE; k0 < to; k0 += FTILE) {
    __syncthreads();
    load_rows<FTILE, D, F_THREADS>(s.x, k + (k_start + k0) * k_pitch + group * a.hs, keys - k0, k_pitch, a.hs);
    load_rows<FTILE, D, F_THREADS>(s.y, v + (k_start + k0) * k_pitch + group * a.hs, keys - k0, k_pitch, a.hs);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < FTILE / 8; j++) {
      int c = tx + 8 * j;
      bool seen = k0 + c < keys && row < queries && visible(a, row, k0 + c);
      float y = dot<D>(s.a[ty], s.x[c]) * a.scale, slope = 1;
      if (a.cap > 0) { y = soft_cap<float>(y, a.cap); slope = soft_cap_slope(y, a.cap); }
      float p = seen ? expf(y - own_lse) : 0.0f;
      s.ds[ty][c] = p * (dot<D>(s.b[ty], s.y[c]) - own_delta) * slope;
    }
    __syncwarp();
    accumulate<D>(acc, s.ds[ty], s.x);
    __syncwarp();
  }
  if (row < queries) store_row<D>(dq + (q_start + row) * q_pitch + head * a.hs, acc, a.hs, a.scale);
}
template <int D> DEV void backward_kv_f32(float* dk, float* dv, const float* dout, const float* lse, const float* delta, const float* q, const float* k, const float* v, const AttentionArgs& a, uint8_t* raw) {
  constexpr int FTILE = FSTREAMED<D>;
  SmemF32<D>& s = *reinterpret_cast<SmemF32<D>*>(raw);
  int document, first;
  if (!find_tile(a.cu_k, a.documents, blockIdx.x, FROWS, document, first)) return;
  int group = blockIdx.y, per_group = a.heads / a.kv_heads, ty = threadIdx.x / 8, tx = threadIdx.x % 8;
  int q_start = a.cu_q[document], k_start = a.cu_k[document], queries = a.cu_q[document + 1] - q_start, keys = a.cu_k[document + 1] - k_start;
  size_t q_pitch = size_t(a.heads) * a.hs, k_pitch = size_t(a.kv_heads) * a.hs, k_at = (k_start + first) * k_pitch + group * a.hs;
  load_rows<FROWS, D, F_THREADS>(s.a, k + k_at, keys - first, k_pitch, a.hs);
  load_rows<FROWS, D, F_THREADS>(s.b, v + k_at, keys - first, k_pitch, a.hs);
  float dk_acc[D / 8] = {}, dv_acc[D / 8] = {};
  int key = first + ty, from, to;
  query_range(a, first, min(first + FROWS, keys), queries, from, to);
  for (int head = group * per_group; head < (group + 1) * per_group; head++)
    for (int q0 = from / FTILE * FTILE; q0 < to; q0 += FTILE) {
      __syncthreads();
      size_t q_at = (q_start + q0) * q_pitch + head * a.hs;
      load_rows<FTILE, D, F_THREADS>(s.x, q + q_at, queries - q0, q_pitch, a.hs);
      load_rows<FTILE, D, F_THREADS>(s.y, dout + q_at, queries - q0, q_pitch, a.hs);
      if (threadIdx.x < FTILE) {
        bool inside = q0 + int(threadIdx.x) < queries;
        size_t at = size_t(head) * a.n_q + q_start + q0 + threadIdx.x;
        s.lse[threadIdx.x] = inside ? lse[at] : 0.0f;
        s.delta[threadIdx.x] = inside ? delta[at] : 0.0f;
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < FTILE / 8; j++) {
        int c = tx + 8 * j;
        bool seen = key < keys && q0 + c < queries && visible(a, q0 + c, key);
        float y = dot<D>(s.a[ty], s.x[c]) * a.scale, slope = 1;
        if (a.cap > 0) { y = soft_cap<float>(y, a.cap); slope = soft_cap_slope(y, a.cap); }
        float p = seen ? expf(y - s.lse[c]) : 0.0f;
        s.p[ty][c] = p;
        s.ds[ty][c] = p * (dot<D>(s.b[ty], s.y[c]) - s.delta[c]) * slope;
      }
      __syncwarp();
      accumulate<D>(dv_acc, s.p[ty], s.y);
      accumulate<D>(dk_acc, s.ds[ty], s.x);
      __syncwarp();
    }
  if (key >= keys) return;
  size_t at = (k_start + key) * k_pitch + group * a.hs;
  store_row<D>(dk + at, dk_acc, a.hs, a.scale);
  store_row<D>(dv + at, dv_acc, a.hs, 1.0f);
}
}  // namespace

KERNEL(attention_delta_bf16, DELTA_THREADS, 1)(float* delta, const bf16* dout, const bf16* out, int n, int heads, int hs) { rowsum(delta, dout, out, n, heads, hs); }
EXPORT_KERNEL(attention_delta_bf16, DELTA_THREADS)
TILE(attention_delta_bf16, DELTA_ROWS, 1)
KERNEL(attention_delta_f32, DELTA_THREADS, 1)(float* delta, const float* dout, const float* out, int n, int heads, int hs) { rowsum(delta, dout, out, n, heads, hs); }
EXPORT_KERNEL(attention_delta_f32, DELTA_THREADS)
TILE(attention_delta_f32, DELTA_ROWS, 1)
#define BACKWARD_Q(D, T, suffix, threads, rows, Memory, body)                                                        \
  KERNEL(attention_backward_q_##D##_##suffix, threads, 1)                                                            \
  (T* dq, const T* dout, const float* lse, const float* delta, const T* q, const T* k, const T* v, ATTENTION_ARGS) { \
    DYNAMIC_SHARED(smem);                                                                                            \
    body<D>(dq, dout, lse, delta, q, k, v, ATTENTION_PACKED, smem);                                                  \
  }                                                                                                                  \
  EXPORT_KERNEL(attention_backward_q_##D##_##suffix, threads)                                                        \
  TILE(attention_backward_q_##D##_##suffix, rows, 1)                                                                 \
  ATTENTION_SHARED(attention_backward_q_##D##_##suffix, sizeof(Memory<D>))
// `name` says which of dk and dv it writes.
#define BACKWARD_KV(name, D, T, suffix, threads, rows, Memory, ...)                                                         \
  KERNEL(attention_backward_##name##_##D##_##suffix, threads, 1)                                                            \
  (T* dk, T* dv, const T* dout, const float* lse, const float* delta, const T* q, const T* k, const T* v, ATTENTION_ARGS) { \
    DYNAMIC_SHARED(smem);                                                                                                   \
    __VA_ARGS__(dk, dv, dout, lse, delta, q, k, v, ATTENTION_PACKED, smem);                                                 \
  }                                                                                                                         \
  EXPORT_KERNEL(attention_backward_##name##_##D##_##suffix, threads)                                                        \
  TILE(attention_backward_##name##_##D##_##suffix, rows, 1)                                                                 \
  ATTENTION_SHARED(attention_backward_##name##_##D##_##suffix, sizeof(Memory<D>))
#define BACKWARD(D)                                                    \
  BACKWARD_Q(D, bf16, bf16, THREADS, ROWS, Smem, backward_q)           \
  BACKWARD_Q(D, float, f32, F_THREADS, FROWS, SmemF32, backward_q_f32) \
  BACKWARD_KV(kv, D, float, f32, F_THREADS, FROWS, SmemF32, backward_kv_f32<D>)
BACKWARD(32)
BACKWARD(64)
BACKWARD(128)
BACKWARD(256)
BACKWARD_KV(kv, 32, bf16, bf16, THREADS, ROWS, Smem, backward_kv<32, true, true>)
BACKWARD_KV(kv, 64, bf16, bf16, THREADS, ROWS, Smem, backward_kv<64, true, true>)
BACKWARD_KV(kv, 128, bf16, bf16, THREADS, ROWS, Smem, backward_kv<128, true, true>)
BACKWARD_KV(k, 256, bf16, bf16, THREADS, ROWS, Smem, backward_kv<256, true, false>)
BACKWARD_KV(v, 256, bf16, bf16, THREADS, ROWS, Smem, backward_kv<256, false, true>)
