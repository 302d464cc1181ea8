// What a mixture of experts needs beside products: the choice of K of E experts a token, rows by expert, and their sum.
//   route      chosen (N, K) = the largest of a token's logits (N, E), the first of equal ones first; shares (N, K) = softmax over the chosen, or over all
//   weigh      rows (R, F) *= the share of the pair (token, place) that each belongs to; backward also dshares = the dot product with the rows before
//   sum_slots  out (N, C) [+]= the sum of a token's K rows of inp (R, C), in their order
//
// Work: route one warp a token: each pick is the largest (key, -index) below the last one, so that nothing is marked; lanes add their own elements, then the
// warp's. weigh one block a row, sum_slots one block a token. Any sizes. Entries of maps must be rows that exist, as in rows.cu.
// Bytes: route 4 (K + 1) E a token read, from cache but for the first time; weigh 2 F, backward 3 F, sum_slots (K + 1) C elements a row.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | plain passes | not measured on a GPU yet | | |
#include "choose.cuh"

namespace {
constexpr int THREADS = 256, TOKENS = 4, ROUTE_THREADS = TOKENS * 32;

DEV u64 warp_largest(u64 v) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) {
    u64 other = __shfl_xor_sync(FULL_MASK, v, o);
    v = other > v ? other : v;
  }
  return v;
}
DEV void route(uint32_t* chosen, float* shares, const float* logits, int normalised, int tokens, int experts, int picks) {
  int token = blockIdx.x * TOKENS + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (token >= tokens) return;
  const float* x = logits + size_t(token) * experts;
  chosen += size_t(token) * picks;
  shares += size_t(token) * picks;
  u64 last = ~u64(0);
  float top = 0, sum = 0;
  for (int j = 0; j < picks; j++) {
    u64 best = 0;
    for (int e = lane; e < experts; e += 32) {
      // Keys of numbers are above 0, so that every item is.
      u64 item = u64(order_key(x[e])) << 32 | (0xffffffffu - uint32_t(e));
      if (item < last && item > best) best = item;
    }
    last = warp_largest(best);
    uint32_t e = 0xffffffffu - uint32_t(last);
    if (j == 0) top = x[e];
    float share = expf(x[e] - top);
    sum += share;
    if (lane == 0) {
      chosen[j] = e;
      shares[j] = share;
    }
  }
  if (!normalised) {
    sum = 0;
    for (int e = lane; e < experts; e += 32) sum += expf(x[e] - top);
    sum = warp_sum(sum);
  }
  if (lane == 0) for (int j = 0; j < picks; j++) shares[j] /= sum;
}
// dlogits = through the softmax; shares of experts that were not chosen follow from that of the first, which has the largest logit.
template <class T>
DEV void route_back(T* dlogits, const float* dshares, const uint32_t* chosen, const float* shares, const float* logits, int normalised, int tokens, int experts, int picks) {
  int token = blockIdx.x * TOKENS + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (token >= tokens) return;
  size_t at = size_t(token) * picks, row = size_t(token) * experts;
  float dot = 0;
  for (int j = 0; j < picks; j++) dot += shares[at + j] * dshares[at + j];
  float top = logits[row + chosen[at]];
  for (int e = lane; e < experts; e += 32) {
    float share = normalised ? 0.0f : shares[at] * expf(logits[row + e] - top), d = 0;
    for (int j = 0; j < picks; j++) {
      if (chosen[at + j] == uint32_t(e)) { share = shares[at + j]; d = dshares[at + j]; }
    }
    dlogits[row + e] = from_float<T>(share * (d - dot));
  }
}
template <class T> DEV void weigh(T* rows, const float* shares, const uint32_t* pairs, int cols) {
  T* x = rows + size_t(blockIdx.x) * cols;
  float share = shares[pairs[blockIdx.x]];
  for (int c = threadIdx.x; c < cols; c += THREADS) x[c] = from_float<T>(to_float(x[c]) * share);
}
template <class T> DEV void weigh_back(float* dshares, T* drows, const T* rows, const float* shares, const uint32_t* pairs, int cols) {
  SHARED(float, scratch, [32]);
  uint32_t pair = pairs[blockIdx.x];
  T* dx = drows + size_t(blockIdx.x) * cols;
  const T* x = rows + size_t(blockIdx.x) * cols;
  float share = shares[pair], dot = 0;
  for (int c = threadIdx.x; c < cols; c += THREADS) {
    float d = to_float(dx[c]);
    dot += d * to_float(x[c]);
    dx[c] = from_float<T>(d * share);
  }
  dot = block_sum(dot, scratch);
  if (threadIdx.x == 0) dshares[pair] = dot;
}
template <class T> DEV void sum_slots(T* out, const T* inp, const uint32_t* slots, int accumulate, int cols, int picks) {
  T* y = out + size_t(blockIdx.x) * cols;
  slots += size_t(blockIdx.x) * picks;
  for (int c = threadIdx.x; c < cols; c += THREADS) {
    float sum = 0;
    for (int j = 0; j < picks; j++) sum += to_float(inp[size_t(slots[j]) * cols + c]);
    y[c] = from_float<T>(accumulate ? to_float(y[c]) + sum : sum);
  }
}
}  // namespace

KERNEL(route_forward, ROUTE_THREADS, 1)(uint32_t* chosen, float* shares, const float* logits, int normalised, int tokens, int experts, int picks) {
  route(chosen, shares, logits, normalised, tokens, experts, picks);
}
EXPORT_KERNEL(route_forward, ROUTE_THREADS)
TILE(route_forward, TOKENS, 1)
#define EXPERTS(T, suffix)                                                                                                                                \
  KERNEL(route_backward_##suffix, ROUTE_THREADS, 1)                                                                                                       \
  (T* dlogits, const float* dshares, const uint32_t* chosen, const float* shares, const float* logits, int normalised, int tokens, int experts, int picks) { \
    route_back(dlogits, dshares, chosen, shares, logits, normalised, tokens, experts, picks);                                                             \
  }                                                                                                                                                       \
  EXPORT_KERNEL(route_backward_##suffix, ROUTE_THREADS)                                                                                                   \
  TILE(route_backward_##suffix, TOKENS, 1)                                                                                                                \
  KERNEL(weigh_forward_##suffix, THREADS, 1)(T* rows, const float* shares, const uint32_t* pairs, int cols) { weigh(rows, shares, pairs, cols); }         \
  EXPORT_KERNEL(weigh_forward_##suffix, THREADS)                                                                                                          \
  KERNEL(weigh_backward_##suffix, THREADS, 1)(float* dshares, T* drows, const T* rows, const float* shares, const uint32_t* pairs, int cols) {            \
    weigh_back(dshares, drows, rows, shares, pairs, cols);                                                                                                \
  }                                                                                                                                                       \
  EXPORT_KERNEL(weigh_backward_##suffix, THREADS)                                                                                                         \
  KERNEL(sum_slots_##suffix, THREADS, 1)(T* out, const T* inp, const uint32_t* slots, int accumulate, int cols, int picks) {                              \
    sum_slots(out, inp, slots, accumulate, cols, picks);                                                                                                  \
  }                                                                                                                                                       \
  EXPORT_KERNEL(sum_slots_##suffix, THREADS)
EXPERTS(float, f32)
EXPERTS(bf16, bf16)
