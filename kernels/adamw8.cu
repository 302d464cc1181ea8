// AdamW with moments of 8 bits (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization") over many tensors in one launch: param in place from grad,
// both f32; each moment a byte an element, the index of the nearest of 256 values times the largest magnitude of its 256 neighbours.
//
// Work: a table of tensors; a block takes 256 elements of one of them, a thread four, whose codes are a word. Bytes: 16 an element (read param, grad, 2 codes; write param, 2 codes)
// and 16 a block. The arithmetic is src/ops/adamw8.rs's, bit for bit.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | four elements a thread | not measured on a GPU yet | | |
#include "exact.cuh"

namespace {
constexpr int BLOCK = 256, CODES = 256, EACH = 4, THREADS = BLOCK / EACH, WARPS = THREADS / 32;
// As src/ops/adamw8.rs writes it: addresses, elements, first block, learning-rate factor, decay. Codes are four a word.
struct Entry {
  float* param;
  const float* grad;
  uint32_t *m, *v;
  float *top_m, *top_v;
  unsigned long long n;
  unsigned first_block;
  float lr_factor, weight_decay;
  unsigned unused;
};

// The largest of the block's values, none of which is negative.
DEV float largest(float x, float* scratch) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, o));
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < WARPS; w++) x = fmaxf(x, scratch[w]);
  return x;
}

// The index of the value nearest to x; of two equally near the first.
DEV uint32_t nearest(const float* values, float x) {
  int low = 0, high = CODES - 1;
  while (low < high) {
    int mid = (low + high) / 2;
    if (add_rn(x, -values[mid]) <= add_rn(values[mid + 1], -x)) high = mid;
    else low = mid + 1;
  }
  return uint32_t(low);
}

// The word of a thread's four.
DEV uint32_t coded(const float* values, const float* x, float top, int left) {
  uint32_t word = 0;
#pragma unroll
  for (int k = 0; k < EACH; k++) if (k < left) word |= nearest(values, top > 0.0f ? x[k] / top : 0.0f) << (8 * k);
  return word;
}
}  // namespace

// signed_map and unsigned_map (256): the values of codes of m and of v, rising.
KERNEL(adamw8_many, THREADS, 1)
(const Entry* table, const float* signed_map, const float* unsigned_map, int tensors, float lr, float beta1, float beta2, float eps, float correct1, float root2, float grad_scale) {
  SHARED(float, maps, [2 * CODES]);
  SHARED(float, tops, [2 * WARPS]);
  for (int i = threadIdx.x; i < CODES; i += THREADS) {
    maps[i] = signed_map[i];
    maps[CODES + i] = unsigned_map[i];
  }
  // The last entry that begins at or before this block.
  int low = 0, high = tensors - 1;
  while (low < high) {
    int mid = (low + high + 1) / 2;
    if (table[mid].first_block <= blockIdx.x) low = mid;
    else high = mid - 1;
  }
  Entry e = table[low];
  size_t own = blockIdx.x - e.first_block, word = own * THREADS + threadIdx.x, first = word * EACH;
  int left = first < e.n ? (e.n - first < EACH ? int(e.n - first) : EACH) : 0;
  __syncthreads();
  float m[EACH], v[EACH], top_m = 0, top_v = 0;
  if (left > 0) {
    uint32_t old_m = e.m[word], old_v = e.v[word];
    float rate = mul_rn(lr, e.lr_factor), keep = add_rn(1.0f, -mul_rn(rate, e.weight_decay)), step = rate / correct1;
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      if (k >= left) break;
      float g = mul_rn(e.grad[first + k], grad_scale);
      float m0 = mul_rn(maps[old_m >> (8 * k) & 255], e.top_m[own]), v0 = mul_rn(maps[CODES + (old_v >> (8 * k) & 255)], e.top_v[own]);
      m[k] = add_rn(m0, mul_rn(1.0f - beta1, add_rn(g, -m0)));
      v[k] = add_rn(mul_rn(beta2, v0), mul_rn(mul_rn(1.0f - beta2, g), g));
      e.param[first + k] = add_rn(mul_rn(e.param[first + k], keep), -(mul_rn(step, m[k]) / add_rn(sqrtf(v[k]) / root2, eps)));
      top_m = fmaxf(top_m, fabsf(m[k]));
      top_v = fmaxf(top_v, v[k]);
    }
  }
  top_m = largest(top_m, tops);
  top_v = largest(top_v, tops + WARPS);
  if (left > 0) {
    e.m[word] = coded(maps, m, top_m, left);
    e.v[word] = coded(maps + CODES, v, top_v, left);
  }
  // All have read the old ones: `largest` waits.
  if (threadIdx.x == 0) {
    e.top_m[own] = top_m;
    e.top_v[own] = top_v;
  }
}
EXPORT_KERNEL(adamw8_many, THREADS)
EXPORT_CONSTANT(adamw8_block, BLOCK)
EXPORT_CONSTANT(adamw8_entry_bytes, sizeof(Entry))
