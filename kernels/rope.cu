// Rotary position embedding (Su et al. 2021), rotate_half layout: (x_i, x_{i+HS/2}) of each head turn by the angle of the row's position.
//
// Work: one block a row, a thread a pair; in place. `sign` 1 turns forward, -1 back (the gradient). A position that is not below T gives NaN.
// Bytes: 2 C a row times the element's size, and HS of tables.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one pass in place | not measured on a GPU yet | | |
#include "prelude.cuh"

namespace {
constexpr int THREADS = 256;
template <class T>
DEV void rotate(T* x, const uint32_t* positions, const float* cos, const float* sin, int cols, int half, int table, float sign) {
  uint32_t p = positions[blockIdx.x];
  T* row = x + size_t(blockIdx.x) * cols;
  for (int i = threadIdx.x; i < cols / 2; i += THREADS) {
    int head = i / half, k = i % half;
    float c = NAN, s = NAN;
    if (p < uint32_t(table)) { c = cos[size_t(p) * half + k]; s = sign * sin[size_t(p) * half + k]; }
    T *a = row + head * 2 * half + k, *b = a + half;
    float u = to_float(*a), v = to_float(*b);
    *a = from_float<T>(u * c - v * s);
    *b = from_float<T>(v * c + u * s);
  }
}
}  // namespace

#define KERNELS(T, suffix)                                                                                                              \
  KERNEL(rope_##suffix, THREADS, 1)(T* x, const uint32_t* positions, const float* cos, const float* sin, int cols, int half, int table, float sign) { \
    rotate(x, positions, cos, sin, cols, half, table, sign);                                                                            \
  }                                                                                                                                     \
  EXPORT_KERNEL(rope_##suffix, THREADS)
KERNELS(float, f32)
KERNELS(bf16, bf16)
