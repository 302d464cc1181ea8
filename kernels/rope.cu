// Rotary position embedding (Su et al. 2021), rotate_half layout: (x_i, x_{i+HS/2}) of each head turn by the angle of the row's position.
//
// Work: one block a row of one tensor or of two (queries and keys), 16 bytes of each half of a head a thread; in place. Heads whose halves are no multiples of
// 16 bytes go pair by pair. `sign` 1 turns forward, -1 back (the gradient). A position that is not below T gives NaN.
// Bytes: 2 C a row times the element's size, and HS of tables.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one pass in place, a pair a thread | not measured on a GPU | | |
// | 2 | 16 bytes a thread, two tensors | not measured on a GPU yet | | |
#include "prelude.cuh"

namespace {
constexpr int THREADS = 256;
// The cosines and sines of one position, null if there is none.
struct Angles {
  const float *cos, *sin;
  float sign;
  DEV float2 at(int k) const { return cos ? make_float2(cos[k], sign * sin[k]) : make_float2(NAN, NAN); }
};
template <class T> DEV void rotate_pairs(T* row, const Angles& angles, int cols, int half) {
  for (int i = threadIdx.x; i < cols / 2; i += THREADS) {
    int head = i / half, k = i % half;
    float2 t = angles.at(k);
    T *a = row + head * 2 * half + k, *b = a + half;
    float u = to_float(*a), v = to_float(*b);
    *a = from_float<T>(u * t.x - v * t.y);
    *b = from_float<T>(v * t.x + u * t.y);
  }
}
template <class T> DEV void rotate_row(T* row, const Angles& angles, int cols, int half) {
  constexpr int N = Pack<T>::N;
  if (half % N != 0 || !aligned16(row, half)) return rotate_pairs(row, angles, cols, half);
  for (int i = threadIdx.x; i < cols / 2 / N; i += THREADS) {
    int head = i * N / half, k = i * N % half;
    T* a = row + head * 2 * half + k;
    Pack<T> u, v;
    u.load(a);
    v.load(a + half);
#pragma unroll
    for (int j = 0; j < N; j++) {
      float2 t = angles.at(k + j);
      float x = u.v[j], y = v.v[j];
      u.v[j] = x * t.x - y * t.y;
      v.v[j] = y * t.x + x * t.y;
    }
    u.store(a);
    v.store(a + half);
  }
}
template <class T>
DEV void rotate(T* x, T* y, const uint32_t* positions, const float* cos, const float* sin, int cols, int y_cols, int half, int table, float sign) {
  uint32_t p = positions[blockIdx.x];
  bool known = p < uint32_t(table);
  Angles angles = {known ? cos + size_t(p) * half : nullptr, known ? sin + size_t(p) * half : nullptr, sign};
  rotate_row(x + size_t(blockIdx.x) * cols, angles, cols, half);
  if (y) rotate_row(y + size_t(blockIdx.x) * y_cols, angles, y_cols, half);
}
}  // namespace

#define KERNELS(T, suffix)                                                                                                              \
  KERNEL(rope_##suffix, THREADS, 1)(T* x, T* OPTIONAL y, const uint32_t* positions, const float* cos, const float* sin, int cols, int y_cols, int half, int table, float sign) { \
    rotate(x, y, positions, cos, sin, cols, y_cols, half, table, sign);                                                                 \
  }                                                                                                                                     \
  EXPORT_KERNEL(rope_##suffix, THREADS)
KERNELS(float, f32)
KERNELS(bf16, bf16)
