// AdamW (Loshchilov and Hutter 2019) over many tensors in one launch: param, m and v in place from grad, all f32.
//
// Work: a table of tensors; a block takes BLOCK elements of one of them. Bytes: 28 an element (read param, m, v, grad; write param, m, v).
// The corrections of the moments come from the host in f64, as PyTorch computes them.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | 4 elements a thread and step | not measured on a GPU yet | | |
#include "prelude.cuh"

namespace {
constexpr int THREADS = 256, BLOCK = 4096;
// As src/ops/adamw.rs writes it: addresses, elements, first block, learning-rate factor, decay.
struct Entry {
  float *param, *m, *v;
  const float* grad;
  unsigned long long n;
  unsigned first_block;
  float lr_factor, weight_decay;
  unsigned unused;
};
}  // namespace

KERNEL(adamw_many, THREADS, 1)
(const Entry* table, int tensors, float lr, float beta1, float beta2, float eps, float correct1, float root2, float grad_scale) {
  // The last entry that begins at or before this block.
  int low = 0, high = tensors - 1;
  while (low < high) {
    int mid = (low + high + 1) / 2;
    if (table[mid].first_block <= blockIdx.x) low = mid;
    else high = mid - 1;
  }
  Entry e = table[low];
  size_t first = size_t(blockIdx.x - e.first_block) * BLOCK;
  size_t last = first + BLOCK < e.n ? first + BLOCK : size_t(e.n);
  float rate = lr * e.lr_factor, keep = 1.0f - rate * e.weight_decay, step = rate / correct1;
  for (size_t i = first + threadIdx.x; i < last; i += THREADS) {
    float g = e.grad[i] * grad_scale, m = e.m[i] + (1.0f - beta1) * (g - e.m[i]), v = beta2 * e.v[i] + (1.0f - beta2) * g * g;
    e.m[i] = m;
    e.v[i] = v;
    e.param[i] = e.param[i] * keep - step * m / (sqrtf(v) / root2 + eps);
  }
}
EXPORT_KERNEL(adamw_many, THREADS)
EXPORT_CONSTANT(adamw_block, BLOCK)
EXPORT_CONSTANT(adamw_entry_bytes, sizeof(Entry))
