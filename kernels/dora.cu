// DoRA (Liu et al. 2024): y = g (x W^T + s u B^T) + bias, g = magnitude / norm by output rows, norm = |W + s B A| by rows, a constant in backward.
//
// norms: a block takes ROWS output rows and runs over their columns; W + s B A lives in registers only, and A is read once for ROWS rows.
// scale: a block a row of the output. backward: a block takes 32 rows of 256 columns, a thread a column: its sum over those rows goes to `partial`,
// the blocks' sums are added by reduce_rows in order.
// FLOP of norms: 2 R out in. Bytes: norms out in e + 4 R in out / ROWS, from L2; scale 2 e an element, backward 3 e. Any sizes, any rank.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | tiles of W + s B A in registers | not measured on a GPU yet | | |
#include "reduce.cuh"

namespace {
constexpr int THREADS = 256, ROWS = 8, RANKS = 32, BLOCK = 32;

template <class T> DEV void row_norms(float* norms, const T* weight, const float* a, const float* b, float scale, int rows, int cols, int rank) {
  SHARED(float, factors, [ROWS][RANKS]);
  SHARED(float, scratch, [32]);
  int first = blockIdx.x * ROWS, count = min(ROWS, rows - first);
  float squares[ROWS] = {};
  for (int c0 = 0; c0 < cols; c0 += THREADS) {
    int c = c0 + threadIdx.x;
    float update[ROWS] = {};
    for (int k0 = 0; k0 < rank; k0 += RANKS) {
      if (c0 == 0 || rank > RANKS) {  // factors of a small rank stay
        __syncthreads();              // those before are read to their end
        for (int i = threadIdx.x; i < ROWS * RANKS; i += THREADS) {
          int j = i / RANKS, k = k0 + i % RANKS;
          factors[j][i % RANKS] = j < count && k < rank ? scale * b[size_t(first + j) * rank + k] : 0.0f;
        }
        __syncthreads();
      }
      int depth = c < cols ? min(RANKS, rank - k0) : 0;
      for (int k = 0; k < depth; k++) {
        float x = a[size_t(k0 + k) * cols + c];
#pragma unroll
        for (int j = 0; j < ROWS; j++) update[j] = fmaf(factors[j][k], x, update[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
      float x = c < cols && j < count ? to_float(weight[size_t(first + j) * cols + c]) + update[j] : 0.0f;
      squares[j] = fmaf(x, x, squares[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < ROWS; j++) {
    float sum = block_sum(squares[j], scratch);
    if (threadIdx.x == 0 && j < count) norms[first + j] = sqrtf(sum);
  }
}
template <class T> DEV void scale_columns(T* out, const float* magnitude, const float* norms, const float* bias, int cols) {
  T* row = out + size_t(blockIdx.x) * cols;
  bool vec = aligned16(out, cols);
  for (int c = threadIdx.x * Pack<T>::N; c < cols; c += THREADS * Pack<T>::N) {
    Pack<T> x;
    load_some(x, row + c, cols - c, vec);
#pragma unroll
    for (int i = 0; i < Pack<T>::N; i++) if (c + i < cols) x.v[i] = x.v[i] * (magnitude[c + i] / norms[c + i]) + (bias ? bias[c + i] : 0.0f);
    store_some(x, row + c, cols - c, vec);
  }
}
// dout *= magnitude / norm; partial (blocks, C) = sum over the block's rows of dout z / norm, of dout as it was.
template <class T> DEV void backward(T* dout, float* partial, const T* z, const float* magnitude, const float* norms, int rows, int cols) {
  int c = blockIdx.y * THREADS + threadIdx.x, first = blockIdx.x * BLOCK, last = min(first + BLOCK, rows);
  if (c >= cols) return;
  float inverse = 1.0f / norms[c], gain = magnitude[c] * inverse, sum = 0;
  for (int n = first; n < last; n++) {
    size_t at = size_t(n) * cols + c;
    float d = to_float(dout[at]);
    sum = fmaf(d, to_float(z[at]), sum);
    dout[at] = from_float<T>(d * gain);
  }
  partial[size_t(blockIdx.x) * cols + c] = sum * inverse;
}
}  // namespace

#define KERNELS(T, suffix)                                                                                                                  \
  KERNEL(dora_norms_##suffix, THREADS, 1)                                                                                                   \
  (float* norms, const T* weight, const float* a, const float* b, float scale, int rows, int cols, int rank) {                              \
    row_norms(norms, weight, a, b, scale, rows, cols, rank);                                                                                \
  }                                                                                                                                         \
  EXPORT_KERNEL(dora_norms_##suffix, THREADS)                                                                                               \
  TILE(dora_norms_##suffix, ROWS, 1)                                                                                                        \
  KERNEL(dora_scale_##suffix, THREADS, 1)(T* out, const float* magnitude, const float* norms, const float* OPTIONAL bias, int cols) {       \
    scale_columns(out, magnitude, norms, bias, cols);                                                                                       \
  }                                                                                                                                         \
  EXPORT_KERNEL(dora_scale_##suffix, THREADS)                                                                                               \
  KERNEL(dora_backward_##suffix, THREADS, 1)                                                                                                \
  (T* dout, float* partial, const T* z, const float* magnitude, const float* norms, int rows, int cols) {                                   \
    backward(dout, partial, z, magnitude, norms, rows, cols);                                                                               \
  }                                                                                                                                         \
  EXPORT_KERNEL(dora_backward_##suffix, THREADS)                                                                                            \
  TILE(dora_backward_##suffix, BLOCK, THREADS)
EXPORT_CONSTANT(dora_rows, BLOCK)
KERNELS(float, f32)
KERNELS(bf16, bf16)
