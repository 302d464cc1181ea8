// GELU (Hendrycks and Gimpel 2016; exact, by erf), ReLU and tanh: out = f(inp); dinp = dout f'(inp).
//
// Work: 16 bytes a thread. Bytes: forward 2 elements, backward 3, each times the element's size.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one pass | not measured on a GPU yet | | |
#include "prelude.cuh"

namespace {
constexpr int THREADS = 256;
struct Gelu {
  static DEV float value(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
  static DEV float slope(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x); }
};
struct Relu {
  static DEV float value(float x) { return x < 0.0f ? 0.0f : x; }      // NaN stays NaN
  static DEV float slope(float x) { return x > 0.0f ? 1.0f : 0.0f; }
};
struct Tanh {
  static DEV float value(float x) { return tanhf(x); }
  static DEV float slope(float x) { float y = tanhf(x); return 1.0f - y * y; }
};
// out = f(inp), or dout f'(inp) if there is a dout.
template <class F, class T> DEV void apply(T* out, const T* dout, const T* inp, unsigned long long n) {
  constexpr int N = Pack<T>::N;
  size_t at = (size_t(blockIdx.x) * THREADS + threadIdx.x) * N;
  if (at >= n) return;
  int left = int(n - at < size_t(N) ? n - at : size_t(N));
  bool vec = aligned16(out, N) && aligned16(inp, N) && aligned16(dout, N);
  Pack<T> x, d;
  load_some(x, inp + at, left, vec);
  if (dout) load_some(d, dout + at, left, vec);
#pragma unroll
  for (int i = 0; i < N; i++) x.v[i] = dout ? d.v[i] * F::slope(x.v[i]) : F::value(x.v[i]);
  store_some(x, out + at, left, vec);
}
}  // namespace

#define KERNELS(F, f, T, suffix)                                                                                       \
  KERNEL(f##_forward_##suffix, THREADS, 1)(T* out, const T* inp, unsigned long long n) { apply<F, T>(out, nullptr, inp, n); } \
  EXPORT_KERNEL(f##_forward_##suffix, THREADS)                                                                         \
  KERNEL(f##_backward_##suffix, THREADS, 1)(T* dinp, const T* dout, const T* inp, unsigned long long n) { apply<F, T>(dinp, dout, inp, n); } \
  EXPORT_KERNEL(f##_backward_##suffix, THREADS)
KERNELS(Gelu, gelu, float, f32)
KERNELS(Gelu, gelu, bf16, bf16)
KERNELS(Relu, relu, float, f32)
KERNELS(Relu, relu, bf16, bf16)
KERNELS(Tanh, tanh, float, f32)
KERNELS(Tanh, tanh, bf16, bf16)
