// Gated activations (Shazeer 2020): out = f(gate) * up. SwiGLU: f(x) = x / (1 + exp(-x)); GeGLU: exact GELU, or its tanh form (Gemma).
// The functions are include/activation.cuh's.
//
// Work: 16 bytes a thread. Bytes: forward 3 elements, backward 5, each times the element's size; one more where backward gives out again (`act`, which
// would cost three by itself).
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one pass | not measured on a GPU yet | | |
#include "activation.cuh"

namespace {
constexpr int THREADS = 256;

template <class T> struct Span { size_t at; int left; bool vec; };
template <class T> DEV bool span(Span<T>& s, bool aligned, unsigned long long n) {
  s.at = (size_t(blockIdx.x) * THREADS + threadIdx.x) * Pack<T>::N;
  if (s.at >= n) return false;
  s.left = int(n - s.at < size_t(Pack<T>::N) ? n - s.at : size_t(Pack<T>::N));
  s.vec = aligned;
  return true;
}
template <class F, class T> DEV void forward(T* out, const T* gate, const T* up, unsigned long long n) {
  Span<T> s;
  if (!span(s, aligned16(out, 16) && aligned16(gate, 16) && aligned16(up, 16), n)) return;
  Pack<T> g, u;
  load_some(g, gate + s.at, s.left, s.vec);
  load_some(u, up + s.at, s.left, s.vec);
#pragma unroll
  for (int i = 0; i < Pack<T>::N; i++) g.v[i] = F::value(g.v[i]) * u.v[i];
  store_some(g, out + s.at, s.left, s.vec);
}
template <class F, class T> DEV void backward(T* dgate, T* dup, T* act, const T* dout, const T* gate, const T* up, unsigned long long n) {
  Span<T> s;
  bool aligned = (!act || aligned16(act, 16)) && aligned16(dgate, 16) && aligned16(dup, 16) && aligned16(dout, 16) && aligned16(gate, 16) && aligned16(up, 16);
  if (!span(s, aligned, n)) return;
  Pack<T> d, g, u, out;
  load_some(d, dout + s.at, s.left, s.vec);
  load_some(g, gate + s.at, s.left, s.vec);
  load_some(u, up + s.at, s.left, s.vec);
#pragma unroll
  for (int i = 0; i < Pack<T>::N; i++) {
    float x = g.v[i];
    out.v[i] = F::value(x) * u.v[i];
    g.v[i] = F::times_slope(d.v[i] * u.v[i], x);
    u.v[i] = d.v[i] * x * F::share(x);
  }
  store_some(g, dgate + s.at, s.left, s.vec);
  store_some(u, dup + s.at, s.left, s.vec);
  if (act) store_some(out, act + s.at, s.left, s.vec);
}
}  // namespace

#define KERNELS(F, f, T, suffix)                                                                                              \
  KERNEL(f##_forward_##suffix, THREADS, 1)(T* out, const T* gate, const T* up, unsigned long long n) { forward<F>(out, gate, up, n); } \
  EXPORT_KERNEL(f##_forward_##suffix, THREADS)                                                                                \
  KERNEL(f##_backward_##suffix, THREADS, 1)                                                                                   \
  (T* dgate, T* dup, T* OPTIONAL act, const T* dout, const T* gate, const T* up, unsigned long long n) {                      \
    backward<F>(dgate, dup, act, dout, gate, up, n);                                                                          \
  }                                                                                                                           \
  EXPORT_KERNEL(f##_backward_##suffix, THREADS)
KERNELS(Silu, swiglu, float, f32)
KERNELS(Silu, swiglu, bf16, bf16)
KERNELS(Gelu, geglu, float, f32)
KERNELS(Gelu, geglu, bf16, bf16)
KERNELS(GeluTanh, geglu_tanh, float, f32)
KERNELS(GeluTanh, geglu_tanh, bf16, bf16)
