// sum (N, C) += weight states (M, C)[rows (N)]: what one layer's states of a few tokens add to a mixture of layers, f32.
//
// Work: a block a row, a thread an element at a time. Any sizes; a row that is not there gives NaN. Bytes: N C (8 + e).
// The bits of the CPU: one multiplication and one addition, not fused.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one pass | not measured on a GPU yet | | |
#include "choose.cuh"

namespace {
constexpr int THREADS = 256;

template <class T> DEV void mix(float* sum, const T* states, const uint32_t* rows, float weight, int cols, int count) {
  uint32_t row = rows[blockIdx.x];
  bool there = row < uint32_t(count);
  const T* x = states + size_t(there ? row : 0) * cols;
  float* y = sum + size_t(blockIdx.x) * cols;
  for (int c = threadIdx.x; c < cols; c += THREADS) y[c] = there ? add_rn(y[c], mul_rn(weight, to_float(x[c]))) : __uint_as_float(0x7fc00000);
}
}  // namespace

#define MIX(T, suffix)                                                                                                                   \
  KERNEL(mix_##suffix, THREADS, 1)(float* sum, const T* states, const uint32_t* rows, float weight, int cols, int count) {               \
    mix(sum, states, rows, weight, cols, count);                                                                                         \
  }                                                                                                                                      \
  EXPORT_KERNEL(mix_##suffix, THREADS)
MIX(float, f32)
MIX(bf16, bf16)
