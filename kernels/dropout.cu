// Dropout of a LoRA's input: out = or += m inp, or (1 - m) inp, where m is 1 / (1 - p) for what is kept and 0 for the rest. inp, out (N, C), f32 or bf16.
//
// Work: a thread takes 4 columns of a row, which one draw of Philox decides: key for (seed, step, linear), counter (column / 4, position, document, 0). Any
// sizes. The mask is drawn again wherever it is needed and stored nowhere. Bytes: 2 a element (3 with +=), times the type's.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one pass | not measured on a GPU yet | | |
#include "philox.cuh"

namespace {
constexpr int THREADS = 256, DRAW = 4;

// Kept is what draws `least` or more; rows (N, 2): document and position of each.
template <class T>
DEV void dropout(T* out, const T* inp, const uint32_t* rows, int n, int cols, unsigned long long key, uint32_t least, float scale, bool rest, bool add) {
  size_t at = size_t(blockIdx.x) * THREADS + threadIdx.x, chunks = (cols + DRAW - 1) / DRAW, r = at / chunks, c = at % chunks;
  if (r >= size_t(n)) return;
  Philox drawn = philox(key, uint32_t(c), rows[2 * r + 1], rows[2 * r], 0);
#pragma unroll
  for (int k = 0; k < DRAW; k++) {
    if (c * DRAW + k >= size_t(cols)) break;
    size_t i = r * cols + c * DRAW + k;
    float x = to_float(inp[i]), y = drawn.v[k] >= least ? x * scale : 0.0f;
    if (rest) y = x - y;
    out[i] = from_float<T>(add ? to_float(out[i]) + y : y);
  }
}
}  // namespace

KERNEL(dropout_f32, THREADS, 1)
(float* out, const float* inp, const uint32_t* rows, int n, int cols, unsigned long long key, uint32_t least, float scale, int rest, int add) {
  dropout(out, inp, rows, n, cols, key, least, scale, rest != 0, add != 0);
}
EXPORT_KERNEL(dropout_f32, THREADS)
KERNEL(dropout_bf16, THREADS, 1)
(bf16* out, const bf16* inp, const uint32_t* rows, int n, int cols, unsigned long long key, uint32_t least, float scale, int rest, int add) {
  dropout(out, inp, rows, n, cols, key, least, scale, rest != 0, add != 0);
}
EXPORT_KERNEL(dropout_bf16, THREADS)
EXPORT_CONSTANT(dropout_draw, DRAW)
