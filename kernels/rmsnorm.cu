// RMSNorm (Zhang and Sennrich 2019): out = inp * rstd * (offset + weight), rstd = 1 / sqrt(mean(inp^2) + eps); with the residual addition before it.
// The offset is 1 in Gemma, else -0, which changes no bit of a weight.
//
// Work: one block a row, 16 bytes a thread and step; any number of columns. Backward: one block a row, too, but with a dweight one for ROWS rows, so
// that it is summed in a fixed order: over the rows of a block here, over the blocks in reduce_rows.
// Bytes: forward 2 C (read, write) a row, add_forward 4 C, backward 4 C (3 C where dinp is not added to), each times the element's size. No bank conflicts.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | row in two passes, the second from L1 | not measured on a GPU | | |
// | 2 | backward: a block a row where no dweight is wanted | not measured on a GPU yet | | |
#include "reduce.cuh"

namespace {
constexpr int THREADS = 256, ROWS = 32;

// sum (if not null) = inp + resid; out, rstd of sum (or inp).
template <class T>
DEV void forward(T* out, float* rstd, T* sum, const T* inp, const T* resid, const float* weight, float offset, int cols, float eps) {
  SHARED(float, scratch, [32]);
  size_t row = blockIdx.x;
  const T* x = inp + row * cols;
  bool vec = aligned16(inp, cols) && aligned16(out, cols) && (!sum || (aligned16(sum, cols) && aligned16(resid, cols)));
  constexpr int N = Pack<T>::N;
  float squares = 0;
  for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
    Pack<T> v;
    load_some(v, x + c, cols - c, vec);
    if (sum) {
      Pack<T> r;
      load_some(r, resid + row * cols + c, cols - c, vec);
#pragma unroll
      for (int i = 0; i < N; i++) v.v[i] = to_float(from_float<T>(v.v[i] + r.v[i]));
      store_some(v, sum + row * cols + c, cols - c, vec);
    }
#pragma unroll
    for (int i = 0; i < N; i++) squares += v.v[i] * v.v[i];
  }
  float r = rsqrtf(block_sum(squares, scratch) / cols + eps);
  if (threadIdx.x == 0) rstd[row] = r;
  if (sum) x = sum + row * cols;
  for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
    Pack<T> v;
    load_some(v, x + c, cols - c, vec);
#pragma unroll
    for (int i = 0; i < N; i++) v.v[i] = c + i < cols ? v.v[i] * r * (weight[c + i] + offset) : 0.0f;
    store_some(v, out + row * cols + c, cols - c, vec);
  }
}

// w = offset + weight. dinp = (with `add`, +=) rstd (w dout) - inp rstd^3 / C sum(w dout inp); partial (blocks, C) = sum over the block's rows of dout inp rstd, if not null.
template <class T>
DEV void backward(T* dinp, float* partial, const T* dout, const T* inp, const float* rstd, const float* weight, float offset, int rows, int cols, bool add) {
  SHARED(float, scratch, [32]);
  int each = partial ? ROWS : 1, first = blockIdx.x * each, last = min(first + each, rows);
  bool vec = aligned16(inp, cols) && aligned16(dout, cols) && aligned16(dinp, cols);
  constexpr int N = Pack<T>::N;
  for (int n = first; n < last; n++) {
    const T *x = inp + size_t(n) * cols, *dy = dout + size_t(n) * cols;
    T* dx = dinp + size_t(n) * cols;
    float r = rstd[n], dot = 0;
    for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
      Pack<T> v, g;
      load_some(v, x + c, cols - c, vec);
      load_some(g, dy + c, cols - c, vec);
#pragma unroll
      for (int i = 0; i < N; i++) if (c + i < cols) dot += g.v[i] * (weight[c + i] + offset) * v.v[i];
    }
    float k = -r * r * r * (block_sum(dot, scratch) / cols);
    for (int c = threadIdx.x * N; c < cols; c += THREADS * N) {
      Pack<T> v, g, d = {};
      load_some(v, x + c, cols - c, vec);
      load_some(g, dy + c, cols - c, vec);
      if (add) load_some(d, dx + c, cols - c, vec);
#pragma unroll
      for (int i = 0; i < N; i++) if (c + i < cols) {
        d.v[i] += g.v[i] * (weight[c + i] + offset) * r + v.v[i] * k;
        // Each column belongs to one thread, so the sum over rows needs no exchange.
        if (partial) {
          float* p = partial + size_t(blockIdx.x) * cols + c + i;
          *p = (n == first ? 0.0f : *p) + g.v[i] * v.v[i] * r;
        }
      }
      store_some(d, dx + c, cols - c, vec);
    }
  }
}
}  // namespace

#define KERNELS(T, suffix)                                                                                                                    \
  KERNEL(rmsnorm_forward_##suffix, THREADS, 1)(T* out, float* rstd, const T* inp, const float* weight, float offset, int cols, float eps) {   \
    forward<T>(out, rstd, nullptr, inp, nullptr, weight, offset, cols, eps);                                                                  \
  }                                                                                                                                           \
  EXPORT_KERNEL(rmsnorm_forward_##suffix, THREADS)                                                                                            \
  KERNEL(add_rmsnorm_forward_##suffix, THREADS, 1)                                                                                            \
  (T* out, float* rstd, T* sum, const T* inp, const T* resid, const float* weight, float offset, int cols, float eps) {                       \
    forward<T>(out, rstd, sum, inp, resid, weight, offset, cols, eps);                                                                        \
  }                                                                                                                                           \
  EXPORT_KERNEL(add_rmsnorm_forward_##suffix, THREADS)                                                                                        \
  KERNEL(rmsnorm_backward_##suffix, THREADS, 1)                                                                                               \
  (T* dinp, float* OPTIONAL partial, const T* dout, const T* inp, const float* rstd, const float* weight, float offset, int rows, int cols,    \
   int add) {                                                                                                                                 \
    backward<T>(dinp, partial, dout, inp, rstd, weight, offset, rows, cols, add);                                                             \
  }                                                                                                                                           \
  EXPORT_KERNEL(rmsnorm_backward_##suffix, THREADS)
EXPORT_CONSTANT(rmsnorm_rows, ROWS)
KERNELS(float, f32)
KERNELS(bf16, bf16)
