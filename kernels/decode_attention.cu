// Attention of one new query a row over that row's cached keys and values: out (B, NH HS) = softmax(scale q k^T) v over slots
// starts[b] .. starts[b] + lengths[b] (with a window only the last of them).
//
// Work: a block takes one head of one row; each of 4 warps takes 32 keys at a time, a lane one key for the scores, then a lane HS / 32 columns for
// the sums; the warps' parts are joined at the end. A row depends on nothing but itself.
// Bytes: 2 HS elements for each key and key head times the heads that share it (from L2 after the first). FLOP: 4 HS a key and head.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | a warp for 32 keys | not measured on a GPU yet | | |
#include "reduce.cuh"

namespace {
constexpr int WARPS = 4, THREADS = 32 * WARPS, MAX_HS = 256, PER_LANE = MAX_HS / 32;

template <class T>
DEV void decode(T* out, const T* q, const T* k, const T* v, const uint32_t* starts, const uint32_t* lengths, int slots, int heads, int kv_heads, int hs, float scale, int window) {
  SHARED(float, sq, [MAX_HS]);
  SHARED(float, sp, [WARPS][32]);
  SHARED(float, part, [WARPS][MAX_HS]);
  SHARED(float, part_top, [WARPS]);
  SHARED(float, part_sum, [WARPS]);
  int row = blockIdx.x, head = blockIdx.y, group = head / (heads / kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int c = threadIdx.x; c < hs; c += THREADS) sq[c] = to_float(q[(size_t(row) * heads + head) * hs + c]) * scale;
  __syncthreads();
  int end = int(starts[row] + lengths[row]), first = int(starts[row]);
  if (window > 0) first = max(first, end - window);
  if (end > slots) end = first = 0;       // a row outside the cache reads nothing; its result is NaN
  float top = -INFINITY, sum = 0, acc[PER_LANE] = {};
  for (int k0 = first + warp * 32; k0 < end; k0 += THREADS) {
    float score = -INFINITY;
    if (k0 + lane < end) {
      const T* key = k + (size_t(k0 + lane) * kv_heads + group) * hs;
      score = 0;
      for (int c = 0; c < hs; c++) score = fmaf(sq[c], to_float(key[c]), score);
    }
    float m = fmaxf(top, warp_max(score)), correction = expf(top - m), p = expf(score - m);
    sum = sum * correction + warp_sum(p);
    top = m;
    sp[warp][lane] = p;
    __syncwarp();
    int keys = min(32, end - k0);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      int c = lane + 32 * i;
      if (c >= hs) break;
      float x = acc[i] * correction;
      for (int j = 0; j < keys; j++) x = fmaf(sp[warp][j], to_float(v[(size_t(k0 + j) * kv_heads + group) * hs + c]), x);
      acc[i] = x;
    }
    __syncwarp();
  }
  if (lane == 0) { part_top[warp] = top; part_sum[warp] = sum; }
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) if (lane + 32 * i < hs) part[warp][lane + 32 * i] = acc[i];
  __syncthreads();
  float m = -INFINITY, total = 0;
  for (int w = 0; w < WARPS; w++) m = fmaxf(m, part_top[w]);
  for (int w = 0; w < WARPS; w++) total += part_sum[w] * expf(part_top[w] - m);
  for (int c = threadIdx.x; c < hs; c += THREADS) {
    float x = 0;
    for (int w = 0; w < WARPS; w++) x += part[w][c] * expf(part_top[w] - m);
    out[(size_t(row) * heads + head) * hs + c] = from_float<T>(x / total);
  }
}
}  // namespace

#define KERNELS(T, suffix)                                                                                                                         \
  KERNEL(decode_attention_##suffix, THREADS, 1)                                                                                                    \
  (T* out, const T* q, const T* k, const T* v, const uint32_t* starts, const uint32_t* lengths, int slots, int heads, int kv_heads, int hs, float scale, int window) { \
    decode(out, q, k, v, starts, lengths, slots, heads, kv_heads, hs, scale, window);                                                              \
  }                                                                                                                                                \
  EXPORT_KERNEL(decode_attention_##suffix, THREADS)
KERNELS(float, f32)
KERNELS(bf16, bf16)
