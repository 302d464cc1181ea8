// The sum of squares over many tensors, for the global gradient norm: f32 in, f64 sums in a fixed order.
//
// Work: a block takes BLOCK elements of one tensor of the table and writes one partial sum; sum_partials adds those of all blocks, thread by
// thread and then in order. Bytes: 4 an element.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | two launches | not measured on a GPU yet | | |
#include "prelude.cuh"

namespace {
constexpr int THREADS = 256, BLOCK = 16384;
// As src/ops/grad_norm.rs writes it.
struct Entry {
  const float* grad;
  unsigned long long n;
  unsigned long long first_block;
};
// The sum over the block's threads, in order of the threads; in thread 0.
DEV double ordered_sum(double value) {
  SHARED(double, all, [THREADS]);
  all[threadIdx.x] = value;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (int(threadIdx.x) < half) all[threadIdx.x] += all[threadIdx.x + half];
    __syncthreads();
  }
  return all[0];
}
}  // namespace

KERNEL(squares_many, THREADS, 1)(double* partial, const Entry* table, int tensors) {
  int low = 0, high = tensors - 1;
  while (low < high) {
    int mid = (low + high + 1) / 2;
    if (table[mid].first_block <= blockIdx.x) low = mid;
    else high = mid - 1;
  }
  Entry e = table[low];
  size_t first = size_t(blockIdx.x - e.first_block) * BLOCK;
  size_t last = first + BLOCK < e.n ? first + BLOCK : size_t(e.n);
  double sum = 0;
  for (size_t i = first + threadIdx.x; i < last; i += THREADS) sum += double(e.grad[i]) * double(e.grad[i]);
  sum = ordered_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
EXPORT_KERNEL(squares_many, THREADS)
EXPORT_CONSTANT(squares_block, BLOCK)
EXPORT_CONSTANT(squares_entry_bytes, sizeof(Entry))

KERNEL(sum_partials, THREADS, 1)(double* total, const double* partial, int n) {
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += THREADS) sum += partial[i];
  sum = ordered_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}
EXPORT_KERNEL(sum_partials, THREADS)
