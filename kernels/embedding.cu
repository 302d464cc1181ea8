// Token embedding: out (N, C) = scale weight (V, C) [tokens]; and dweight += scale dout scattered. (Gemma scales by sqrt(C); 1 changes no bit.)
//
// Work: forward one block a row. Backward one block a row, of which only the first with its token works: it adds all rows of that token in
// order, so the result never depends on timing. A token that is not below V gives a row of NaN (forward) or nothing (backward).
// Bytes: forward 2 C a row; backward 2 C a row and N ids a block.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | plain copies | not measured on a GPU yet | | |
#include "prelude.cuh"

namespace {
constexpr int THREADS = 256;

template <class T> DEV void forward(T* out, const uint32_t* tokens, const T* weight, float scale, int cols, int vocab) {
  uint32_t token = tokens[blockIdx.x];
  T* to = out + size_t(blockIdx.x) * cols;
  const T* from = weight + size_t(token) * cols;
  bool known = token < uint32_t(vocab), vec = aligned16(out, cols) && aligned16(weight, cols);
  for (int c = threadIdx.x * Pack<T>::N; c < cols; c += THREADS * Pack<T>::N) {
    Pack<T> v;
    if (known) load_some(v, from + c, cols - c, vec);
#pragma unroll
    for (int i = 0; i < Pack<T>::N; i++) v.v[i] = known ? v.v[i] * scale : NAN;
    store_some(v, to + c, cols - c, vec);
  }
}
template <class T> DEV void backward(float* dweight, const T* dout, const uint32_t* tokens, float scale, int rows, int cols, int vocab) {
  SHARED(int, earlier, [1]);
  int own = blockIdx.x;
  uint32_t token = tokens[own];
  if (threadIdx.x == 0) earlier[0] = 0;
  __syncthreads();
  bool found = false;
  for (int i = threadIdx.x; i < own; i += THREADS) found |= tokens[i] == token;
  if (found) atomicExch(&earlier[0], 1);
  __syncthreads();
  if (earlier[0] || token >= uint32_t(vocab)) return;
  for (int c = threadIdx.x; c < cols; c += THREADS) {
    float sum = dweight[size_t(token) * cols + c];
    for (int i = own; i < rows; i++) if (tokens[i] == token) sum += scale * to_float(dout[size_t(i) * cols + c]);
    dweight[size_t(token) * cols + c] = sum;
  }
}
}  // namespace

#define KERNELS(T, suffix)                                                                                                         \
  KERNEL(embedding_forward_##suffix, THREADS, 1)(T* out, const uint32_t* tokens, const T* weight, float scale, int cols, int vocab) { \
    forward(out, tokens, weight, scale, cols, vocab);                                                                              \
  }                                                                                                                                \
  EXPORT_KERNEL(embedding_forward_##suffix, THREADS)                                                                               \
  KERNEL(embedding_backward_##suffix, THREADS, 1)(float* dweight, const T* dout, const uint32_t* tokens, float scale, int rows, int cols, int vocab) { \
    backward(dweight, dout, tokens, scale, rows, cols, vocab);                                                                     \
  }                                                                                                                                \
  EXPORT_KERNEL(embedding_backward_##suffix, THREADS)
KERNELS(float, f32)
KERNELS(bf16, bf16)
