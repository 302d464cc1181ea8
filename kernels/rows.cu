// Small helpers over rows: sums of partial rows, gathered, scattered and padded rows, sums of tensors, casts.
//
// Work: one thread an element or 16 bytes; cast_many: a table of tensors, a block takes CASTS elements of one of them; gather and scatter one block a row. Any sizes. Exact (reduce_rows: a fixed order).
// Bytes: each element read and written once; add reads two. Padded rows are for TMA (a LoRA's tail in sm90/gemm.cu).
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one pass | not measured on a GPU yet | | |
#include "prelude.cuh"

namespace {
constexpr int THREADS = 256, CAST = 4, CASTS = 4096;  // CAST: elements a thread
// As src/ops/rows.rs writes it: addresses, elements, first block, factor.
struct CastEntry {
  bf16* out;
  const float* inp;
  unsigned long long n;
  unsigned first_block;
  float scale;
};

// out[map[i]] = inp[i] or out[i] = inp[map[i]], rows of `bytes` bytes; a map entry of -1 is skipped (scatter) or gives zeros (gather).
template <class W> DEV void move_rows(void* to, const void* from, const int* map, int words, bool scatter) {
  W* out = static_cast<W*>(to);
  const W* inp = static_cast<const W*>(from);
  int i = blockIdx.x, j = map[i];
  for (int c = threadIdx.x; c < words; c += THREADS) {
    if (scatter) { if (j >= 0) out[size_t(j) * words + c] = inp[size_t(i) * words + c]; }
    else out[size_t(i) * words + c] = j >= 0 ? inp[size_t(j) * words + c] : W(0);
  }
}
// out (C) += the sum over rows of inp (rows, C), in order.
template <class T> DEV void reduce(float* out, const T* inp, int rows, int cols) {
  int c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= cols) return;
  float sum = 0;
  for (int r = 0; r < rows; r++) sum += to_float(inp[size_t(r) * cols + c]);
  out[c] += sum;
}
template <class T> DEV void add(T* out, const T* inp, unsigned long long n) {
  constexpr int N = Pack<T>::N;
  size_t i = (size_t(blockIdx.x) * THREADS + threadIdx.x) * N;
  if (i >= n) return;
  int left = int(n - i < size_t(N) ? n - i : size_t(N));
  bool vec = aligned16(out, N) && aligned16(inp, N);
  Pack<T> a, b;
  load_some(a, out + i, left, vec);
  load_some(b, inp + i, left, vec);
#pragma unroll
  for (int k = 0; k < N; k++) a.v[k] += b.v[k];
  store_some(a, out + i, left, vec);
}
template <class O, class I> DEV void cast(O* out, const I* inp, float scale, unsigned long long n) {
  size_t first = (size_t(blockIdx.x) * THREADS + threadIdx.x) * CAST;
#pragma unroll
  for (int k = 0; k < CAST; k++) if (first + k < n) out[first + k] = from_float<O>(to_float(inp[first + k]) * scale);
}
// out (rows, padded) = scale * inp (rows, cols), zeros behind: 16 bytes of out a thread.
template <class I> DEV void pad(bf16* out, const I* inp, float scale, int rows, int cols, int padded) {
  size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x;
  constexpr int N = Pack<bf16>::N;
  int chunks = padded / N, r = int(i / chunks), c = int(i % chunks) * N;
  if (r >= rows) return;
  Pack<bf16> x;
#pragma unroll
  for (int k = 0; k < N; k++) x.v[k] = c + k < cols ? scale * to_float(inp[size_t(r) * cols + c + k]) : 0.0f;
  x.store(out + i * N);
}
}  // namespace

KERNEL(reduce_rows_f32, THREADS, 1)(float* out, const float* inp, int rows, int cols) { reduce(out, inp, rows, cols); }
EXPORT_KERNEL(reduce_rows_f32, THREADS)
KERNEL(reduce_rows_bf16, THREADS, 1)(float* out, const bf16* inp, int rows, int cols) { reduce(out, inp, rows, cols); }
EXPORT_KERNEL(reduce_rows_bf16, THREADS)
KERNEL(gather_rows_u32, THREADS, 1)(void* out, const void* inp, const int* map, int words) { move_rows<uint32_t>(out, inp, map, words, false); }
EXPORT_KERNEL(gather_rows_u32, THREADS)
KERNEL(scatter_rows_u32, THREADS, 1)(void* out, const void* inp, const int* map, int words) { move_rows<uint32_t>(out, inp, map, words, true); }
EXPORT_KERNEL(scatter_rows_u32, THREADS)
KERNEL(gather_rows_u16, THREADS, 1)(void* out, const void* inp, const int* map, int words) { move_rows<uint16_t>(out, inp, map, words, false); }
EXPORT_KERNEL(gather_rows_u16, THREADS)
KERNEL(scatter_rows_u16, THREADS, 1)(void* out, const void* inp, const int* map, int words) { move_rows<uint16_t>(out, inp, map, words, true); }
EXPORT_KERNEL(scatter_rows_u16, THREADS)
KERNEL(add_f32, THREADS, 1)(float* out, const float* inp, unsigned long long n) { add(out, inp, n); }
EXPORT_KERNEL(add_f32, THREADS)
KERNEL(add_bf16, THREADS, 1)(bf16* out, const bf16* inp, unsigned long long n) { add(out, inp, n); }
EXPORT_KERNEL(add_bf16, THREADS)
// out = scale * inp
KERNEL(cast_f32_bf16, THREADS, 1)(bf16* out, const float* inp, float scale, unsigned long long n) { cast(out, inp, scale, n); }
EXPORT_KERNEL(cast_f32_bf16, THREADS)
TILE(cast_f32_bf16, THREADS * CAST, 1)
KERNEL(cast_bf16_f32, THREADS, 1)(float* out, const bf16* inp, float scale, unsigned long long n) { cast(out, inp, scale, n); }
EXPORT_KERNEL(cast_bf16_f32, THREADS)
TILE(cast_bf16_f32, THREADS * CAST, 1)
KERNEL(cast_f32_f32, THREADS, 1)(float* out, const float* inp, float scale, unsigned long long n) { cast(out, inp, scale, n); }
EXPORT_KERNEL(cast_f32_f32, THREADS)
TILE(cast_f32_f32, THREADS * CAST, 1)
KERNEL(cast_bf16_bf16, THREADS, 1)(bf16* out, const bf16* inp, float scale, unsigned long long n) { cast(out, inp, scale, n); }
EXPORT_KERNEL(cast_bf16_bf16, THREADS)
TILE(cast_bf16_bf16, THREADS * CAST, 1)
// Many tensors in one launch: an adapter's bf16 copies, once for each change of it.
KERNEL(cast_many, THREADS, 1)(const CastEntry* table, int tensors) {
  // The last entry that begins at or before this block.
  int low = 0, high = tensors - 1;
  while (low < high) {
    int mid = (low + high + 1) / 2;
    if (table[mid].first_block <= blockIdx.x) low = mid;
    else high = mid - 1;
  }
  CastEntry e = table[low];
  size_t first = size_t(blockIdx.x - e.first_block) * CASTS;
  size_t last = first + CASTS < e.n ? first + CASTS : size_t(e.n);
  for (size_t i = first + threadIdx.x * CAST; i < last; i += THREADS * CAST)
#pragma unroll
    for (int k = 0; k < CAST; k++) if (i + k < last) e.out[i + k] = from_float<bf16>(e.inp[i + k] * e.scale);
}
EXPORT_KERNEL(cast_many, THREADS)
EXPORT_CONSTANT(cast_many_block, CASTS)
EXPORT_CONSTANT(cast_many_entry_bytes, sizeof(CastEntry))
KERNEL(pad_rows_f32, THREADS, 1)(bf16* out, const float* inp, float scale, int rows, int cols, int padded) { pad(out, inp, scale, rows, cols, padded); }
EXPORT_KERNEL(pad_rows_f32, THREADS)
TILE(pad_rows_f32, THREADS * Pack<bf16>::N, 1)
KERNEL(pad_rows_bf16, THREADS, 1)(bf16* out, const bf16* inp, float scale, int rows, int cols, int padded) { pad(out, inp, scale, rows, cols, padded); }
EXPORT_KERNEL(pad_rows_bf16, THREADS)
TILE(pad_rows_bf16, THREADS * Pack<bf16>::N, 1)
// 4 words a thread.
KERNEL(copy_u32, THREADS, 1)(void* to, const void* from, unsigned long long n) {
  uint32_t* out = static_cast<uint32_t*>(to);
  const uint32_t* inp = static_cast<const uint32_t*>(from);
  size_t i = (size_t(blockIdx.x) * THREADS + threadIdx.x) * 4;
  if (i + 4 <= n && aligned16(out, 4) && aligned16(inp, 4)) *reinterpret_cast<uint4*>(out + i) = *reinterpret_cast<const uint4*>(inp + i);
  else for (int k = 0; k < 4; k++) if (i + k < n) out[i + k] = inp[i + k];
}
EXPORT_KERNEL(copy_u32, THREADS)
