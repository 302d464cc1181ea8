// LayerNorm (Ba et al. 2016): out = (inp - mean) rstd weight + bias, rstd = 1 / sqrt(var + eps).
//
// Work: one block a row, 16 bytes a thread and step; mean and variance in two passes (the second from L1), so that large means lose nothing.
// Backward: one block for ROWS rows; dweight and dbias are summed in a fixed order, as in rmsnorm.cu.
// Bytes: forward 2 C a row, backward 4 C, each times the element's size. No bank conflicts.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | row in three passes | not measured on a GPU yet | | |
#include "reduce.cuh"

namespace {
constexpr int THREADS = 256, ROWS = 32;

template <class T>
DEV void forward(T* out, float* mean, float* rstd, const T* inp, const float* weight, const float* bias, int cols, float eps) {
  SHARED(float, scratch, [32]);
  constexpr int N = Pack<T>::N;
  size_t row = blockIdx.x;
  const T* x = inp + row * cols;
  bool vec = aligned16(inp, cols) && aligned16(out, cols);
  float sum = 0, squares = 0;
  Pack<T> v;
  for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
    load_some(v, x + c, cols - c, vec);
#pragma unroll
    for (int i = 0; i < N; i++) sum += v.v[i];
  }
  float m = block_sum(sum, scratch) / cols;
  for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
    load_some(v, x + c, cols - c, vec);
#pragma unroll
    for (int i = 0; i < N; i++) if (c + i < cols) squares += (v.v[i] - m) * (v.v[i] - m);
  }
  float r = rsqrtf(block_sum(squares, scratch) / cols + eps);
  if (threadIdx.x == 0) { mean[row] = m; rstd[row] = r; }
  for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
    load_some(v, x + c, cols - c, vec);
#pragma unroll
    for (int i = 0; i < N; i++) v.v[i] = c + i < cols ? (v.v[i] - m) * r * weight[c + i] + bias[c + i] : 0.0f;
    store_some(v, out + row * cols + c, cols - c, vec);
  }
}

// dinp +=; partial (2, blocks, C): sums over the block's rows of dout xhat, and of dout, if not null.
template <class T>
DEV void backward(T* dinp, float* partial, const T* dout, const T* inp, const float* mean, const float* rstd, const float* weight, int rows, int cols) {
  SHARED(float, scratch, [32]);
  constexpr int N = Pack<T>::N;
  int first = blockIdx.x * ROWS, last = min(first + ROWS, rows);
  bool vec = aligned16(inp, cols) && aligned16(dout, cols) && aligned16(dinp, cols);
  for (int n = first; n < last; n++) {
    const T *x = inp + size_t(n) * cols, *dy = dout + size_t(n) * cols;
    T* dx = dinp + size_t(n) * cols;
    float r = rstd[n], m = mean[n], sum = 0, dot = 0;
    Pack<T> v, g, d;
    for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
      load_some(v, x + c, cols - c, vec);
      load_some(g, dy + c, cols - c, vec);
#pragma unroll
      for (int i = 0; i < N; i++) if (c + i < cols) { float w = g.v[i] * weight[c + i]; sum += w; dot += w * (v.v[i] - m) * r; }
    }
    sum = block_sum(sum, scratch) / cols;
    dot = block_sum(dot, scratch) / cols;
    for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
      load_some(v, x + c, cols - c, vec);
      load_some(g, dy + c, cols - c, vec);
      load_some(d, dx + c, cols - c, vec);
#pragma unroll
      for (int i = 0; i < N; i++) if (c + i < cols) {
        float xhat = (v.v[i] - m) * r;
        d.v[i] += r * (g.v[i] * weight[c + i] - sum - xhat * dot);
        if (partial) {
          float* p = partial + size_t(blockIdx.x) * cols + c + i;
          float* q = p + size_t(gridDim.x) * cols;
          *p = (n == first ? 0.0f : *p) + g.v[i] * xhat;
          *q = (n == first ? 0.0f : *q) + g.v[i];
        }
      }
      store_some(d, dx + c, cols - c, vec);
    }
  }
}
}  // namespace

#define KERNELS(T, suffix)                                                                                                       \
  KERNEL(layernorm_forward_##suffix, THREADS, 1)                                                                                 \
  (T* out, float* mean, float* rstd, const T* inp, const float* weight, const float* bias, int cols, float eps) {                \
    forward(out, mean, rstd, inp, weight, bias, cols, eps);                                                                      \
  }                                                                                                                              \
  EXPORT_KERNEL(layernorm_forward_##suffix, THREADS)                                                                             \
  KERNEL(layernorm_backward_##suffix, THREADS, 1)                                                                                \
  (T* dinp, float* OPTIONAL partial, const T* dout, const T* inp, const float* mean, const float* rstd, const float* weight, int rows, int cols) { \
    backward(dinp, partial, dout, inp, mean, rstd, weight, rows, cols);                                                          \
  }                                                                                                                              \
  EXPORT_KERNEL(layernorm_backward_##suffix, THREADS)
EXPORT_CONSTANT(layernorm_rows, ROWS)
KERNELS(float, f32)
KERNELS(bf16, bf16)
