// What the attention kernels share: where a tile of a packed document lies, which keys a query sees, tiles in shared memory.
#pragma once
#include "activation.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

struct AttentionArgs {
  const int *cu_q, *cu_k;                       // (documents + 1) offsets of query and key rows
  int documents, n_q, n_k, heads, kv_heads, hs; // rows in all, heads, elements of a head
  float scale;
  int causal, window;                           // query i sees key j if j <= i and i - j < window (0: no window)
  float cap;                                    // scaled scores x are cap tanh(x / cap) (0: no cap)
};
#define ATTENTION_ARGS const int *cu_q, const int *cu_k, int documents, int n_q, int n_k, int heads, int kv_heads, int hs, float scale, int causal, int window, float cap
#define ATTENTION_PACKED {cu_q, cu_k, documents, n_q, n_k, heads, kv_heads, hs, scale, causal, window, cap}

// Dynamic shared memory that every card from Ampere on has: sm_86 and sm_89 have the least.
#define ATTENTION_SHARED(name, ...)                                                     \
  static_assert((__VA_ARGS__) <= 99 * 1024, "more than sm_86 and sm_89 have");          \
  SHARED_BYTES(name, __VA_ARGS__)

// Tiles of `size` rows are numbered so that their places need no table: document d's begin at cu[d] / size + d, which leaves room for each (some
// numbers are nobody's). So there are rows / size + documents of them, and a warp finds a tile's document in one load of each lane for up to 32
// documents, two for up to 1024: as many as an entry of a table and its document's offsets would take.
// Document and first row (within it) of a tile; false if it is nobody's. Whole warps call.
DEV bool find_tile(const int* cu, int documents, int tile, int size, int& document, int& first) {
  int lane = threadIdx.x % 32;
  document = 0;
  for (int span = documents, step; span > 1; span = step) {
    step = (span + 31) / 32;
    int at = document + lane * step;
    int before = __popc(__ballot_sync(FULL_MASK, lane * step < span && cu[min(at, documents)] / size + at <= tile)) - 1;
    document += before * step;
    step = min(step, span - before * step);
  }
  if (documents == 0) return false;
  int begin = cu[document];
  first = (tile - begin / size - document) * size;
  return first < cu[document + 1] - begin;
}
// A choice that is made once for a tile: f(Flag<true>) where scores are capped.
template <bool B> struct Flag { static constexpr bool value = B; };
template <class F> DEV void by_cap(const AttentionArgs& a, F f) {
  if (a.cap > 0) f(Flag<true>());
  else f(Flag<false>());
}
DEV bool visible(const AttentionArgs& a, int q, int k) { return !a.causal || (k <= q && (a.window == 0 || q - k < a.window)); }

// Keys [from, to) of a document with `keys` of them that rows [first, last) may see.
DEV void key_range(const AttentionArgs& a, int first, int last, int keys, int& from, int& to) {
  from = a.causal && a.window > 0 ? max(0, first - a.window + 1) : 0;
  to = a.causal ? min(keys, last) : keys;
}
// Queries [from, to) of a document with `queries` of them that may see keys [first, last).
DEV void query_range(const AttentionArgs& a, int first, int last, int queries, int& from, int& to) {
  from = a.causal ? min(first, queries) : 0;
  to = a.causal && a.window > 0 ? min(queries, last + a.window - 1) : queries;
}

// ROWS rows of D elements: those below `rows` from src (row pitch in elements, hs elements each), zeros elsewhere. bf16 by cp.async where rows
// are multiples of 16 bytes; the caller commits and waits.
template <int ROWS, int D, int THREADS>
DEV void load_rows(bf16 (*tile)[D + 8], const bf16* src, int rows, size_t pitch, int hs) {
  static_assert(ROWS * D / 8 % THREADS == 0 && THREADS % (D / 8) == 0, "a thread copies the same columns of several rows");
  constexpr int STEP = THREADS / (D / 8);
  int first = threadIdx.x / (D / 8), c = threadIdx.x % (D / 8) * 8;
  if (hs % 8 == 0) {
    const bf16* p = src + first * pitch + c;
#pragma unroll
    for (int r = first, n = 0; n < ROWS / STEP; n++, r += STEP, p += STEP * pitch) {
      bool inside = r < rows && c < hs;
      cp_async_16(&tile[r][c], inside ? p : src, inside);
    }
    return;
  }
  for (int r = first; r < ROWS; r += STEP)
#pragma unroll
    for (int e = 0; e < 8; e++) tile[r][c + e] = r < rows && c + e < hs ? src[r * pitch + c + e] : from_float<bf16>(0.0f);
}
template <int ROWS, int D, int THREADS>
DEV void load_rows(float (*tile)[D + 4], const float* src, int rows, size_t pitch, int hs) {
  for (int i = threadIdx.x; i < ROWS * D; i += THREADS) {
    int r = i / D, c = i % D;
    tile[r][c] = r < rows && c < hs ? src[r * pitch + c] : 0.0f;
  }
}

// acc (16, ROWS) += a (16, D) tile^T of one warp: rows of `a` from row0 on.
template <int ROWS, int D> DEV void multiply_transposed(float (&acc)[1][ROWS / 8][4], bf16 (*a)[D + 8], int row0, bf16 (*tile)[D + 8]) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < D / 16; i++) {
    uint32_t fa[1][4], fb[ROWS / 8][2];
    ldmatrix_x4(fa[0], &a[row0 + lane % 16][i * 16 + lane / 16 * 8]);
#pragma unroll
    for (int j = 0; j < ROWS / 8; j += 2) {
      uint32_t f[4];
      ldmatrix_x4(f, &tile[j * 8 + lane % 8 + lane / 16 * 8][i * 16 + lane / 8 % 2 * 8]);
      fb[j][0] = f[0]; fb[j][1] = f[1]; fb[j + 1][0] = f[2]; fb[j + 1][1] = f[3];
    }
    mma_tile<1, ROWS / 8>(acc, fa, fb);
  }
}
// acc (16, D) += p (16, ROWS) tile (ROWS, D) of one warp, p as accumulators, rounded to bf16.
template <int ROWS, int D> DEV void multiply_rows(float (&acc)[1][D / 8][4], const float (&p)[1][ROWS / 8][4], bf16 (*tile)[D + 8]) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < ROWS / 16; i++) {
    uint32_t fa[1][4] = {{pack_bf16(p[0][2 * i][0], p[0][2 * i][1]), pack_bf16(p[0][2 * i][2], p[0][2 * i][3]),
                          pack_bf16(p[0][2 * i + 1][0], p[0][2 * i + 1][1]), pack_bf16(p[0][2 * i + 1][2], p[0][2 * i + 1][3])}};
    uint32_t fb[D / 8][2];
#pragma unroll
    for (int j = 0; j < D / 8; j += 2) {
      uint32_t f[4];
      ldmatrix_x4_trans(f, &tile[i * 16 + lane % 16][j * 8 + lane / 16 * 8]);
      fb[j][0] = f[0]; fb[j][1] = f[1]; fb[j + 1][0] = f[2]; fb[j + 1][1] = f[3];
    }
    mma_tile<1, D / 8>(acc, fa, fb);
  }
}
// Rows row0 + lane / 4 (+ 8) of accumulators (16, D), times `factor`, to `out` where the row is below `rows`.
template <int D> DEV void store_rows(bf16* out, const float (&acc)[1][D / 8][4], int row0, int rows, size_t pitch, int hs, float factor0, float factor1) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int row = row0 + lane / 4 + 8 * h;
    if (row >= rows) continue;
    float f = h ? factor1 : factor0;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
      int c = j * 8 + lane % 4 * 2;
      bf16* p = out + row * pitch + c;
      if (c + 1 < hs && hs % 2 == 0) *reinterpret_cast<uint32_t*>(p) = pack_bf16(acc[0][j][2 * h] * f, acc[0][j][2 * h + 1] * f);
      else {
        if (c < hs) p[0] = from_float<bf16>(acc[0][j][2 * h] * f);
        if (c + 1 < hs) p[1] = from_float<bf16>(acc[0][j][2 * h + 1] * f);
      }
    }
  }
}
