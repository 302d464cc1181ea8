// What sampling and beam search share: the arithmetic of src/ops/choose.rs, bit for bit. Single IEEE operations that the compiler may not
// fuse, and sums of integers, which no order can change. All threads of the block must call the functions on rows.
#pragma once
#include <cstring>

#include "exact.cuh"
#include "reduce.cuh"

using u64 = unsigned long long;
constexpr float LOG2_E = 1.44269504088896340736f;

DEV u64 mul_high(u64 a, u64 b) { return TWIN(__umul64hi(a, b), u64((unsigned __int128)a * b >> 64)); }

// 2^(t + bits), t <= 0, rounded down.
DEV u64 weight(float t, int bits) {
  if (!(t >= float(-bits))) return 0;
  float n = floorf(t), f = add_rn(t, -n);
  float p = add_rn(mul_rn(0.0002171501f, f), 0.0012440881f);
  p = add_rn(mul_rn(p, f), 0.009678064f);
  p = add_rn(mul_rn(p, f), 0.055484153f);
  p = add_rn(mul_rn(p, f), 0.24022952f);
  p = add_rn(mul_rn(p, f), 0.693147f);
  p = add_rn(mul_rn(p, f), 1.0f);
  return u64(mul_rn(p, __uint_as_float(uint32_t(int(n) + bits + 127) << 23)));
}
DEV uint32_t order_key(float x) {
  if (x != x) return 0xffffffffu;
  uint32_t bits = __float_as_uint(x + 0.0f);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
// The value that has this key.
DEV float key_value(uint32_t key) { return __uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key); }

DEV u64 warp_sum(u64 v) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(FULL_MASK, v, o);
  return v;
}
DEV u64 block_sum(u64 v, u64* scratch) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  v = warp_sum(v);
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  v = warp_sum(lane < warps ? scratch[lane] : u64(0));
  __syncthreads();
  return v;
}
// The sum over the lanes up to this one.
DEV u64 warp_scan(u64 v) {
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    u64 below = __shfl_up_sync(FULL_MASK, v, o);
    if (int(threadIdx.x % 32) >= o) v += below;
  }
  return v;
}

// What the block's threads need beside registers.
struct ChooseScratch {
  u64 bins[256], sums[32];
  float tops[32];
  uint32_t counts[32];
};
// The largest of n values, NaN if there is a NaN or +inf among them.
DEV float row_top(const float* x, int n, ChooseScratch& s) {
  float top = -INFINITY;
  for (int i = threadIdx.x; i < n; i += blockDim.x) top = fmaxf(top, x[i] == x[i] ? x[i] : INFINITY);
  top = block_max(top, s.tops);
  return top < INFINITY ? top : NAN;
}

// *bin += w in two halves: shared memory adds 32 bits at once, but 64 only by trying again and again.
DEV void add_to_bin(u64* bin, u64 w) {
  uint32_t *half = reinterpret_cast<uint32_t*>(bin), low = uint32_t(w), old = atomicAdd(half, low);
  uint32_t high = uint32_t(w >> 32) + (old + low < old);
  if (high) atomicAdd(half + 1, high);
}
struct Cut { uint32_t key; u64 above; };
// Where the weights that item(i, key) gives, added from the largest key down, reach `target`; 8 bits of the key at a time.
template <class Item> DEV Cut select(Item item, int n, u64 target, ChooseScratch& s) {
  Cut cut = {0, 0};
  int lane = threadIdx.x % 32;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) s.bins[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      uint32_t key;
      u64 w = item(i, key);
      if (w > 0 && (u64(key ^ cut.key) >> (shift + 8)) == 0) add_to_bin(&s.bins[key >> shift & 255], w);
    }
    __syncthreads();
    // Each warp for itself: a lane takes 8 bins, lane 0 the largest digits.
    u64 own = 0;
    for (int j = 0; j < 8; j++) own += s.bins[255 - lane * 8 - j];
    u64 upto = cut.above + warp_scan(own), above = upto - own;
    int found = __ffs(int(__ballot_sync(FULL_MASK, upto >= target))) - 1, digit = 255 - lane * 8;
    for (int last = digit - 7; digit > last && above + s.bins[digit] < target; digit--) above += s.bins[digit];
    cut.above = __shfl_sync(FULL_MASK, above, found);
    cut.key |= uint32_t(__shfl_sync(FULL_MASK, digit, found)) << shift;
    __syncthreads();
  }
  return cut;
}

// Each warp's part of a row: neighbouring elements, so that warps in order are elements in order.
struct Segment { int first, last; };
DEV Segment segment(int n) {
  int warps = blockDim.x / 32, warp = threadIdx.x / 32, each = (n + warps * 32 - 1) / (warps * 32) * 32;
  return {min(warp * each, n), min((warp + 1) * each, n)};
}
