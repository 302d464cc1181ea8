// Attention of one new query a row over that row's cached keys and values: out (B, NH HS) = softmax(scale q k^T) v over slots
// starts[b] .. starts[b] + lengths[b] (with a window only the last of them). Heads of up to 256 elements; scaled scores x are cap tanh(x / cap) if cap is above 0.
//
// Work: 16 warps for a row and 1 or up to 4 of the query heads that share a key head. A group of lanes takes a key, 16 bytes of it a lane; a step of a
// warp is 3 or 4 such loads of keys and as many of values before the first is used, and a warp takes every 16th step. Each group of lanes keeps an online softmax of its
// own; at the end groups are joined by shuffles, then the 16 warps in order. Where rows are few the 16 warps are not one block but several, which leave
// their sums in `parts`: decode_attention_join adds them up as one block would, to the same bits. A row depends on nothing but itself.
// Bytes: 2 HS elements for each key and key head (with more than 4 query heads to it, from L2 after the first 4). FLOP: 4 HS a key and head. In several
// blocks 4 (HS + 2) bytes a head and warp are written and read besides.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | a warp for 32 keys, loads of 2 bytes | never measured | | |
// | 2 | 16 bytes a lane, heads of a key head together, keys over blocks | not measured on a GPU yet | | |
#include "activation.cuh"
#include "ptx.cuh"

namespace {
constexpr int WARPS = 16;
constexpr float LOG2E = 1.4426950408889634f, LOWEST = -3.0e38f;  // of no key: finite, so that differences are

DEV void widen(float (&x)[4], uint4 v) { x[0] = __uint_as_float(v.x); x[1] = __uint_as_float(v.y); x[2] = __uint_as_float(v.z); x[3] = __uint_as_float(v.w); }
DEV void widen(float (&x)[8], uint4 v) {
  float2 a = unpack_bf16(v.x), b = unpack_bf16(v.y), c = unpack_bf16(v.z), d = unpack_bf16(v.w);
  x[0] = a.x; x[1] = a.y; x[2] = b.x; x[3] = b.y; x[4] = c.x; x[5] = c.y; x[6] = d.x; x[7] = d.y;
}
// 16 bytes from p, of which only the first `left` elements exist; VECTOR: all or none do, and p is aligned.
template <bool VECTOR, class T> DEV uint4 fetch(const T* p, int left) {
  if constexpr (VECTOR) return left > 0 ? *reinterpret_cast<const uint4*>(p) : make_uint4(0, 0, 0, 0);
  auto at = [&](int i) { return i < left ? to_float(p[i]) : 0.0f; };
  if constexpr (sizeof(T) == 4) return make_uint4(__float_as_uint(at(0)), __float_as_uint(at(1)), __float_as_uint(at(2)), __float_as_uint(at(3)));
  else return make_uint4(pack_bf16(at(0), at(1)), pack_bf16(at(2), at(3)), pack_bf16(at(4), at(5)), pack_bf16(at(6), at(7)));
}
// A head's result from the sums of all warps: `pitch` floats each, the last four of them the maximum, the sum of the weights and two that are not used.
template <class T> DEV void join(T* out, const float* parts, int pitch, int hs) {
  for (int c = threadIdx.x; c < hs; c += blockDim.x) {
    float top = LOWEST, total = 0, x = 0;
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, parts[w * pitch + pitch - 4]);
    for (int w = 0; w < WARPS; w++) {
      float factor = exp2_approx(parts[w * pitch + pitch - 4] - top);
      total = fmaf(parts[w * pitch + pitch - 3], factor, total);
      x = fmaf(parts[w * pitch + c], factor, x);
    }
    out[c] = from_float<T>(x / total);
  }
}

// One key head's query heads: what a group of lanes has added up of `D` columns, a lane CHUNKS times N neighbours.
template <class T, int D, int HEADS> struct Sums {
  static constexpr int N = 16 / sizeof(T), LANES = D / N < 32 ? D / N : 32, CHUNKS = D / (N * LANES), GROUPS = 32 / LANES;
  float top[HEADS], total[HEADS], acc[HEADS][CHUNKS][N];

  // LOADS * GROUPS keys from k0 on, those below `end`; k and v are of the first slot and this key head.
  template <int LOADS, bool VECTOR> DEV void step(const T* k, const T* v, const float (*sq)[D], int k0, int end, int pitch, int hs, float cap) {
    int lane = threadIdx.x % 32, sub = lane % LANES, own = k0 + lane / LANES;
    size_t at = size_t(own) * pitch + sub * N;
    uint4 keys[LOADS][CHUNKS], values[LOADS][CHUNKS];
    auto load = [&](uint4 (&to)[LOADS][CHUNKS], const T* from) {
#pragma unroll
      for (int u = 0; u < LOADS; u++, from += GROUPS * pitch)
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
          int left = own + u * GROUPS < end ? hs - (sub + i * LANES) * N : 0;
          to[u][i] = fetch<VECTOR>(from + i * LANES * N, left);
        }
    };
    load(keys, k + at);
    load(values, v + at);
    __syncwarp();  // all loads are on their way before the first is waited for
    float p[HEADS][LOADS];
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      bool inside = own + u * GROUPS < end;
      float x[CHUNKS][N];
#pragma unroll
      for (int i = 0; i < CHUNKS; i++) widen(x[i], keys[u][i]);
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        float dot = 0;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++)
#pragma unroll
          for (int e = 0; e < N; e += 4) {
            float4 y = *reinterpret_cast<const float4*>(&sq[h][(sub + i * LANES) * N + e]);
            dot = fmaf(y.w, x[i][e + 3], fmaf(y.z, x[i][e + 2], fmaf(y.y, x[i][e + 1], fmaf(y.x, x[i][e], dot))));
          }
#pragma unroll
        for (int o = LANES / 2; o > 0; o >>= 1) dot += __shfl_xor_sync(FULL_MASK, dot, o);
        if (cap > 0) dot = soft_cap<T>(dot, cap);
        p[h][u] = inside ? dot : -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float m = top[h];
#pragma unroll
      for (int u = 0; u < LOADS; u++) m = fmaxf(m, p[h][u]);
      rescale(h, exp2_approx(top[h] - m));
      top[h] = m;
#pragma unroll
      for (int u = 0; u < LOADS; u++) { p[h][u] = exp2_approx(p[h][u] - m); total[h] += p[h][u]; }
    }
#pragma unroll
    for (int u = 0; u < LOADS; u++)
#pragma unroll
      for (int i = 0; i < CHUNKS; i++) {
        float x[N];
        widen(x, values[u][i]);
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
          for (int e = 0; e < N; e++) acc[h][i][e] = fmaf(p[h][u], x[e], acc[h][i][e]);
      }
  }
  DEV void rescale(int h, float factor) {
    total[h] *= factor;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int e = 0; e < N; e++) acc[h][i][e] *= factor;
  }
  // The groups of the warp, in the lanes of the first.
  DEV void join_groups() {
#pragma unroll
    for (int o = LANES; o < 32; o <<= 1)
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        float m = fmaxf(top[h], __shfl_xor_sync(FULL_MASK, top[h], o));
        rescale(h, exp2_approx(top[h] - m));
        top[h] = m;
        total[h] += __shfl_xor_sync(FULL_MASK, total[h], o);
#pragma unroll
        for (int i = 0; i < CHUNKS; i++)
#pragma unroll
          for (int e = 0; e < N; e++) acc[h][i][e] += __shfl_xor_sync(FULL_MASK, acc[h][i][e], o);
      }
  }
  // A warp's sums of head h for `join`.
  DEV void store(float* part, int h, int pitch, int hs) const {
    int lane = threadIdx.x % 32;
    if (lane >= LANES) return;
    if (lane == 0) { part[pitch - 4] = top[h]; part[pitch - 3] = total[h]; }
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int e = 0; e < N; e += 4) {
        int c = (lane + i * LANES) * N + e;
        if (c < hs) *reinterpret_cast<float4*>(part + c) = make_float4(acc[h][i][e], acc[h][i][e + 1], acc[h][i][e + 2], acc[h][i][e + 3]);
      }
  }
};

template <class T, int D, int HEADS>
DEV void decode(T* out, float* parts, const T* q, const T* k, const T* v, const uint32_t* starts, const uint32_t* lengths, int slots, int heads, int kv_heads, int hs, int part, float scale, int window, float cap) {
  using S = Sums<T, D, HEADS>;
  SHARED(float, sq, [HEADS][D]);
  SHARED(float, sums, [WARPS][D + 4]);
  int warps = blockDim.x / 32, blocks = WARPS / warps, row = blockIdx.x / blocks, warp = blockIdx.x % blocks * warps + threadIdx.x / 32;
  int sharing = heads / kv_heads, tiles = (sharing + HEADS - 1) / HEADS, group = blockIdx.y / tiles, first_head = blockIdx.y % tiles * HEADS;
  int count = min(HEADS, sharing - first_head);
  size_t query = size_t(row) * heads + group * sharing + first_head;
  for (int i = threadIdx.x; i < HEADS * D; i += blockDim.x) {
    int h = i / D, c = i % D;
    sq[h][c] = h < count && c < hs ? to_float(q[(query + h) * hs + c]) * (scale * LOG2E) : 0.0f;
  }
  __syncthreads();
  int end = int(starts[row] + lengths[row]), first = int(starts[row]);
  if (end > slots || first < 0) end = first = 0;       // a row outside the cache reads nothing; its result is NaN
  if (window > 0) first = max(first, end - window);
  S s;
#pragma unroll
  for (int h = 0; h < HEADS; h++) { s.top[h] = LOWEST; s.total[h] = 0; }
#pragma unroll
  for (int h = 0; h < HEADS; h++)
#pragma unroll
    for (int i = 0; i < S::CHUNKS; i++)
#pragma unroll
      for (int e = 0; e < S::N; e++) s.acc[h][i][e] = 0;
  const T *keys = k + size_t(group) * hs, *values = v + size_t(group) * hs;
  constexpr int LOADS = S::CHUNKS == 2 ? 2 : HEADS == 1 && sizeof(T) == 2 ? 3 : 4, STEP = LOADS * S::GROUPS;  // 3: for two blocks a multiprocessor
  int slot = kv_heads * hs;
  cap *= LOG2E;  // the scores are in base 2
  if (aligned16(k, hs) && aligned16(v, hs)) {
    for (int k0 = first + warp * STEP; k0 < end; k0 += WARPS * STEP) s.template step<LOADS, true>(keys, values, sq, k0, end, slot, hs, cap);
  } else {
    for (int k0 = first + warp * S::GROUPS; k0 < end; k0 += WARPS * S::GROUPS) s.template step<1, false>(keys, values, sq, k0, end, slot, hs, cap);
  }
  s.join_groups();
  int pitch = parts ? part : D + 4;
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    if (h >= count) break;
    if (parts) {
      s.store(parts + ((query + h) * WARPS + warp) * pitch, h, pitch, hs);
    } else {
      s.store(sums[warp], h, pitch, hs);
      __syncthreads();
      join(out + (query + h) * hs, sums[0], pitch, hs);
      __syncthreads();         // the next head overwrites the sums
    }
  }
}
}  // namespace

#define KERNELS(T, d, heads_a_block, suffix, blocks)                                                                                                                                      \
  KERNEL(decode_attention_##d##_##heads_a_block##_##suffix, 32 * WARPS, blocks)                                                                                                           \
  (T* out, float* OPTIONAL parts, const T* q, const T* k, const T* v, const uint32_t* starts, const uint32_t* lengths, int slots, int heads, int kv_heads, int hs, int part, float scale, \
   int window, float cap) {                                                                                                                                                               \
    decode<T, d, heads_a_block>(out, parts, q, k, v, starts, lengths, slots, heads, kv_heads, hs, part, scale, window, cap);                                                              \
  }                                                                                                                                                                                       \
  EXPORT_KERNEL(decode_attention_##d##_##heads_a_block##_##suffix, 32 * WARPS)
KERNELS(float, 64, 1, f32, 2)
KERNELS(float, 64, 4, f32, 1)
KERNELS(float, 128, 1, f32, 2)
KERNELS(float, 128, 4, f32, 1)
KERNELS(float, 256, 1, f32, 1)
KERNELS(float, 256, 4, f32, 1)
KERNELS(bf16, 64, 1, bf16, 2)
KERNELS(bf16, 64, 4, bf16, 1)
KERNELS(bf16, 128, 1, bf16, 2)
KERNELS(bf16, 128, 4, bf16, 1)
KERNELS(bf16, 256, 1, bf16, 2)
KERNELS(bf16, 256, 4, bf16, 1)

// A block joins one head of one row.
#define JOIN(T, suffix)                                                                                           \
  KERNEL(decode_attention_join_##suffix, 128, 1)(T* out, const float* parts, int hs, int part) {                  \
    join(out + size_t(blockIdx.x) * hs, parts + size_t(blockIdx.x) * WARPS * part, part, hs);                     \
  }                                                                                                               \
  EXPORT_KERNEL(decode_attention_join_##suffix, 128)
JOIN(float, f32)
JOIN(bf16, bf16)
EXPORT_CONSTANT(decode_attention_warps, WARPS)
