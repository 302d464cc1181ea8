// GELU (Hendrycks and Gimpel 2016; exact, by erf, or by tanh), SiLU, ReLU and tanh: out = f(inp); dinp = dout f'(inp). The functions are
// include/activation.cuh's. softcap: x = cap tanh(x / cap) in place (Gemma 2's logits).
//
// Work: 16 bytes a thread. Bytes: forward 2 elements, backward 3, each times the element's size.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one pass | not measured on a GPU yet | | |
#include "activation.cuh"

namespace {
constexpr int THREADS = 256;
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
template <class T> DEV void cap_logits(T* x, float cap, unsigned long long n) {
  constexpr int N = Pack<T>::N;
  size_t at = (size_t(blockIdx.x) * THREADS + threadIdx.x) * N;
  if (at >= n) return;
  int left = int(n - at < size_t(N) ? n - at : size_t(N));
  bool vec = aligned16(x, N);
  Pack<T> v;
  load_some(v, x + at, left, vec);
#pragma unroll
  for (int i = 0; i < N; i++) v.v[i] = soft_cap<float>(v.v[i], cap);
  store_some(v, x + at, left, vec);
}
}  // namespace

#define KERNELS(F, f, T, suffix)                                                                                       \
  KERNEL(f##_forward_##suffix, THREADS, 1)(T* out, const T* inp, unsigned long long n) { apply<F, T>(out, nullptr, inp, n); } \
  EXPORT_KERNEL(f##_forward_##suffix, THREADS)                                                                         \
  KERNEL(f##_backward_##suffix, THREADS, 1)(T* dinp, const T* dout, const T* inp, unsigned long long n) { apply<F, T>(dinp, dout, inp, n); } \
  EXPORT_KERNEL(f##_backward_##suffix, THREADS)
KERNELS(Gelu, gelu, float, f32)
KERNELS(Gelu, gelu, bf16, bf16)
KERNELS(GeluTanh, gelu_tanh, float, f32)
KERNELS(GeluTanh, gelu_tanh, bf16, bf16)
KERNELS(Silu, silu, float, f32)
KERNELS(Silu, silu, bf16, bf16)
KERNELS(Relu, relu, float, f32)
KERNELS(Relu, relu, bf16, bf16)
KERNELS(Tanh, tanh, float, f32)
KERNELS(Tanh, tanh, bf16, bf16)

KERNEL(softcap_f32, THREADS, 1)(float* x, float cap, unsigned long long n) { cap_logits(x, cap, n); }
EXPORT_KERNEL(softcap_f32, THREADS)
KERNEL(softcap_bf16, THREADS, 1)(bf16* x, float cap, unsigned long long n) { cap_logits(x, cap, n); }
EXPORT_KERNEL(softcap_bf16, THREADS)
