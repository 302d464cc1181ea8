// Matrix products: out (M, N) = alpha (a b + tail_scale a2 b2) [+ bias (N)] [+ resid (M, N)] [+ out], in the three layouts of a linear layer:
// NT a (M, K), b (N, K); NN a (M, K), b (K, N); TN a (K, M), b (K, N). The tail (a2, b2 of depth K2) is the low-rank part of LoRA: extra K
// columns of the same product, not a pass over out of its own.
//
// bf16: 2 M N (K + K2) FLOP on tensor cores (mma.sync m16n8k16, f32 accumulation). One block a BM x BN tile of out, warps of WM x WN, K in
// steps of DEPTH through a ring of STAGES filled by cp.async. Rows along K are swizzled, others padded by 16 bytes: no bank conflicts. b may be f32
// (adapters): it is rounded on the way to shared memory. Any M, N, K; rows that are not multiples of 16 bytes are copied by ordinary loads.
// Few rows (NT, M up to 16 or 64): bound by reading b once, N K elements. K is not split: a warp adds up 8 columns of out over all of K, in the order of
// the larger tiles, so that a row's bits are the same for any M. The ring is deep instead, 128 elements a row and stage: a block of 32 columns
// has 40 KB of b in flight (16 rows), one of 8 columns 22 KB; those serve matrices too small to give each multiprocessor a block of 32.
// f32: FMA units, 64 x 64 tiles, 4 x 4 a thread; few rows by a ring too; b may be bf16 (widened).
// A TN product of few elements is cut along K: part z of the grid writes a sum of its own, rows.cu adds them up in order.
// Bytes: M K + N K + M N elements at least; each tile of a is read N / BN times, of b M / BM times.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | 128 x 128 x 32, 3 stages, direct epilogue | not measured on a GPU yet | | |
// | 2 | few rows: 16 x 32 x 128, 6 stages; 16 x 8 x 128, 12; 64 x 32 x 128, 4 | not measured on a GPU yet | | |
#include "ptx.cuh"

namespace {
constexpr int BK = 32, PAD = 8;
enum Flags { B_F32 = 1, B_BF16 = 2, OUT_F32 = 4, ACCUMULATE = 8, A_VEC = 16, B_VEC = 32, A2_VEC = 64, B2_VEC = 128, RESID_F32 = 256, B2_F32 = 512 };
enum class Layout { NT, NN, TN };

struct Args {
  void* out;
  const void *a, *b, *a2, *b2;
  const float* bias;
  const void* resid;
  int m, n, k, k2;
  float alpha, tail_scale;
  int flags;
};

// ROWS x COLS elements in shared memory, rows swizzled (of 32 or 128 elements) or padded. Eight rows of the same 16-byte column, and 128 bytes in a
// row, lie in different banks.
template <int ROWS, int COLS, bool SWIZZLED> struct Tile {
  static constexpr int PITCH = SWIZZLED ? COLS : COLS + PAD;
  bf16 e[ROWS * PITCH];
  DEV bf16* at(int r, int c) { return &e[r * PITCH + (SWIZZLED ? (c / 8 ^ (COLS == 32 ? r / 2 % 4 : r % 8)) * 8 + c % 8 : c)]; }
};

// A tile of ROWS x COLS elements (contiguous along COLS) from (r0, c0) of a matrix (rows, cols), zeros outside.
template <int ROWS, int COLS, int THREADS, bool SWIZZLED>
DEV void load_tile(Tile<ROWS, COLS, SWIZZLED>& tile, const bf16* src, int r0, int c0, int rows, int cols, bool vec) {
  constexpr int CHUNKS = COLS / 8, STEP = THREADS / CHUNKS;
  // The tiles of few rows: a warp has little else to do, so that addresses must cost little. Larger tiles have no registers for it.
  if (SWIZZLED && COLS == 128 && vec) {
    int r = threadIdx.x / CHUNKS, c = threadIdx.x % CHUNKS * 8;
    const bf16* p = src + size_t(r0 + r) * cols + c0 + c;
#pragma unroll
    for (int j = 0; j < ROWS; j += STEP, p += size_t(STEP) * cols) {
      bool inside = r0 + r + j < rows && c0 + c < cols;
      cp_async_16(tile.at(r + j, c), inside ? p : src, inside);
    }
    return;
  }
#pragma unroll
  for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
    int r = i / CHUNKS, c = i % CHUNKS * 8;
    bool inside = r0 + r < rows && c0 + c < cols;
    const bf16* p = src + (inside ? size_t(r0 + r) * cols + c0 + c : 0);
    if (vec) {
      cp_async_16(tile.at(r, c), p, inside);
    } else {
#pragma unroll
      for (int e = 0; e < 8; e++) *tile.at(r, c + e) = inside && c0 + c + e < cols ? p[e] : from_float<bf16>(0.0f);
    }
  }
}
template <int ROWS, int COLS, int THREADS, bool SWIZZLED>
DEV void load_tile(Tile<ROWS, COLS, SWIZZLED>& tile, const float* src, int r0, int c0, int rows, int cols) {
#pragma unroll
  for (int i = threadIdx.x; i < ROWS * COLS / 2; i += THREADS) {
    int r = i / (COLS / 2), c = i % (COLS / 2) * 2;
    bool inside = r0 + r < rows;
    const float* p = src + (inside ? size_t(r0 + r) * cols : 0);
    float x = inside && c0 + c < cols ? p[c0 + c] : 0.0f, y = inside && c0 + c + 1 < cols ? p[c0 + c + 1] : 0.0f;
    *reinterpret_cast<uint32_t*>(tile.at(r, c)) = pack_bf16(x, y);
  }
}

template <Layout L, int BM, int BN, int DEPTH> struct Stage {
  static constexpr int A_ROWS = L == Layout::TN ? DEPTH : BM, A_COLS = L == Layout::TN ? BM : DEPTH;
  static constexpr int B_ROWS = L == Layout::NT ? BN : DEPTH, B_COLS = L == Layout::NT ? DEPTH : BN;
  Tile<A_ROWS, A_COLS, L != Layout::TN> a;
  Tile<B_ROWS, B_COLS, L == Layout::NT> b;
};

template <Layout L, int BM, int BN, int DEPTH, int THREADS>
DEV void load_stage(Stage<L, BM, BN, DEPTH>& s, const Args& g, int m0, int n0, int k0, bool tail) {
  using S = Stage<L, BM, BN, DEPTH>;
  int k = tail ? g.k2 : g.k;
  const bf16* a = static_cast<const bf16*>(tail ? g.a2 : g.a);
  bool a_vec = g.flags & (tail ? A2_VEC : A_VEC), b_vec = g.flags & (tail ? B2_VEC : B_VEC), b_f32 = g.flags & (tail ? B2_F32 : B_F32);
  if (L == Layout::TN) load_tile<S::A_ROWS, S::A_COLS, THREADS>(s.a, a, k0, m0, k, g.m, a_vec);
  else load_tile<S::A_ROWS, S::A_COLS, THREADS>(s.a, a, m0, k0, g.m, k, a_vec);
  const void* b = tail ? g.b2 : g.b;
  int r0 = L == Layout::NT ? n0 : k0, c0 = L == Layout::NT ? k0 : n0, rows = L == Layout::NT ? g.n : k, cols = L == Layout::NT ? k : g.n;
  if (b_f32) load_tile<S::B_ROWS, S::B_COLS, THREADS>(s.b, static_cast<const float*>(b), r0, c0, rows, cols);
  else load_tile<S::B_ROWS, S::B_COLS, THREADS>(s.b, static_cast<const bf16*>(b), r0, c0, rows, cols, b_vec);
}

DEV float element(const void* p, size_t at, bool is_bf16) { return is_bf16 ? to_float(static_cast<const bf16*>(p)[at]) : static_cast<const float*>(p)[at]; }
// An element of out in f32.
DEV void store_one(const Args& g, int row, int col, float x) {
  size_t at = size_t(row) * g.n + col;
  float* o = static_cast<float*>(g.out) + at;
  if (g.bias) x += g.bias[col];
  if (g.resid) x += element(g.resid, at, !(g.flags & RESID_F32));
  *o = g.flags & ACCUMULATE ? *o + x : x;
}
// Two neighbouring elements of out, of which the second may lie outside.
DEV void store_pair(const Args& g, int row, int col, float x, float y) {
  bool two = col + 1 < g.n;
  size_t at = size_t(row) * g.n + col;
  if (g.bias) { x += g.bias[col]; if (two) y += g.bias[col + 1]; }
  if (g.resid) {
    const float* f = static_cast<const float*>(g.resid) + at;
    const bf16* h = static_cast<const bf16*>(g.resid) + at;
    x += g.flags & RESID_F32 ? f[0] : to_float(h[0]);
    if (two) y += g.flags & RESID_F32 ? f[1] : to_float(h[1]);
  }
  if (g.flags & OUT_F32) {
    float* o = static_cast<float*>(g.out) + at;
    bool add = g.flags & ACCUMULATE;
    o[0] = add ? o[0] + x : x;
    if (two) o[1] = add ? o[1] + y : y;
    return;
  }
  bf16* o = static_cast<bf16*>(g.out) + at;
  if (g.flags & ACCUMULATE) { x += to_float(o[0]); if (two) y += to_float(o[1]); }
  if (two && at % 2 == 0) *reinterpret_cast<uint32_t*>(o) = pack_bf16(x, y);
  else { o[0] = from_float<bf16>(x); if (two) o[1] = from_float<bf16>(y); }
}

template <Layout L, int BM, int BN, int WM, int WN, int DEPTH, int STAGES>
DEV void tensor_gemm(const Args& g, uint8_t* smem) {
  using S = Stage<L, BM, BN, DEPTH>;
  constexpr int THREADS = 32 * (BM / WM) * (BN / WN);
  S* stages = reinterpret_cast<S*>(smem);
  constexpr int MI = WM / 16, NI = WN / 8;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
  int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
  int tail = (g.k2 + DEPTH - 1) / DEPTH, steps = tail + (g.k + DEPTH - 1) / DEPTH;
  float acc[MI][NI][4] = {};
  auto fetch = [&](int t) {
    if (t < steps) load_stage<L, BM, BN, DEPTH, THREADS>(stages[t % STAGES], g, m0, n0, (t < tail ? t : t - tail) * DEPTH, t < tail);
    cp_async_commit();
  };
  for (int t = 0; t < STAGES - 1; t++) fetch(t);
  for (int t = 0; t < steps; t++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    fetch(t + STAGES - 1);
    if (t == tail && tail > 0) {
#pragma unroll
      for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NI; j++)
#pragma unroll
          for (int e = 0; e < 4; e++) acc[i][j][e] *= g.tail_scale;
    }
    S& s = stages[t % STAGES];
#pragma unroll
    for (int kk = 0; kk < DEPTH; kk += 16) {
      uint32_t fa[MI][4], fb[NI][2];
#pragma unroll
      for (int i = 0; i < MI; i++) {
        int r = wm + i * 16;
        if constexpr (L == Layout::TN) ldmatrix_x4_trans(fa[i], s.a.at(kk + lane % 8 + lane / 16 * 8, r + lane / 8 % 2 * 8));
        else ldmatrix_x4(fa[i], s.a.at(r + lane % 16, kk + lane / 16 * 8));
      }
      if constexpr (NI == 1) ldmatrix_x2(fb[0], s.b.at(wn + lane % 8, kk + lane / 8 % 2 * 8));
#pragma unroll
      for (int j = 0; j + 1 < NI; j += 2) {
        uint32_t f[4];
        int c = wn + j * 8;
        if constexpr (L == Layout::NT) ldmatrix_x4(f, s.b.at(c + lane % 8 + lane / 16 * 8, kk + lane / 8 % 2 * 8));
        else ldmatrix_x4_trans(f, s.b.at(kk + lane % 16, c + lane / 16 * 8));
        fb[j][0] = f[0]; fb[j][1] = f[1]; fb[j + 1][0] = f[2]; fb[j + 1][1] = f[3];
      }
      mma_tile<MI, NI>(acc, fa, fb);
    }
  }
  cp_async_wait<0>();
  float scale = steps == tail ? g.alpha * g.tail_scale : g.alpha;
#pragma unroll
  for (int i = 0; i < MI; i++)
#pragma unroll
    for (int j = 0; j < NI; j++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int row = m0 + wm + i * 16 + lane / 4 + h * 8, col = n0 + wn + j * 8 + lane % 4 * 2;
        if (row < g.m && col < g.n) store_pair(g, row, col, scale * acc[i][j][2 * h], scale * acc[i][j][2 * h + 1]);
      }
}

// Part z of a TN product: a run of K's rows, and sum z of out (parts, M, N), f32.
DEV void take_part(Args& g) {
  int parts = int(gridDim.z), z = int(blockIdx.z);
  if (parts == 1) return;
  int rows = ((g.k + parts - 1) / parts + BK - 1) / BK * BK, first = z * rows;
  g.a = static_cast<const bf16*>(g.a) + size_t(first) * g.m;
  g.b = static_cast<const bf16*>(g.b) + size_t(first) * g.n;
  g.out = static_cast<float*>(g.out) + size_t(z) * g.m * g.n;
  g.k = min(rows, g.k - first);
}

// ---- f32 ----
constexpr int FM = 64, FN = 64, FK = 16, F_THREADS = 256;

template <Layout L>
DEV void fma_steps(float (&acc)[4][4], float (*sa)[FM + 4], float (*sb)[FN + 4], const Args& g, const void* a, const void* b, int depth, int m0, int n0, bool b_bf16) {
  int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  for (int k0 = 0; k0 < depth; k0 += FK) {
    for (int i = threadIdx.x; i < FM * FK; i += F_THREADS) {
      // Consecutive threads read consecutive addresses of the operand.
      int k = L == Layout::TN ? i / FM : i % FK, r = L == Layout::TN ? i % FM : i / FK;
      bool in = k0 + k < depth && m0 + r < g.m;
      sa[k][r] = in ? static_cast<const float*>(a)[L == Layout::TN ? size_t(k0 + k) * g.m + m0 + r : size_t(m0 + r) * depth + k0 + k] : 0.0f;
    }
    for (int i = threadIdx.x; i < FN * FK; i += F_THREADS) {
      int k = L == Layout::NT ? i % FK : i / FN, c = L == Layout::NT ? i / FK : i % FN;
      bool in = k0 + k < depth && n0 + c < g.n;
      sb[k][c] = in ? element(b, L == Layout::NT ? size_t(n0 + c) * depth + k0 + k : size_t(k0 + k) * g.n + n0 + c, b_bf16) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < FK; k++) {
      float4 x = *reinterpret_cast<const float4*>(&sa[k][ty * 4]), y = *reinterpret_cast<const float4*>(&sb[k][tx * 4]);
      float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = fmaf(xs[i], ys[j], acc[i][j]);
    }
    __syncthreads();
  }
}
template <Layout L> DEV void fma_gemm(const Args& g) {
  SHARED(float, sa, [FK][FM + 4]);
  SHARED(float, sb, [FK][FN + 4]);
  int m0 = blockIdx.y * FM, n0 = blockIdx.x * FN, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float acc[4][4] = {};
  if (g.k2 > 0) {
    fma_steps<L>(acc, sa, sb, g, g.a2, g.b2, g.k2, m0, n0, !(g.flags & B2_F32));
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) acc[i][j] *= g.tail_scale;
  }
  fma_steps<L>(acc, sa, sb, g, g.a, g.b, g.k, m0, n0, g.flags & B_BF16);
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      int row = m0 + ty * 4 + i, col = n0 + tx * 4 + j;
      if (row < g.m && col < g.n) store_pair(g, row, col, g.alpha * acc[i][j], g.alpha * acc[i][j + 1]);
    }
}

// Few rows (NT, M up to 16) in f32: 32 columns a block, K in steps of 64 through a ring of 6 stages; a thread adds up 2 rows of 2 columns in the order
// of the tiles above. W: type of b.
constexpr int FEW_ROWS = 16, FEW_COLS = 32, FEW_DEPTH = 64, FEW_STAGES = 6, FEW_THREADS = 128;
template <class W> struct FewStage {
  float a[FEW_ROWS][FEW_DEPTH + 4];
  W b[FEW_COLS][FEW_DEPTH + 16 / sizeof(W)];
};
template <int ROWS, class T, int PITCH>
DEV void load_few(T (*tile)[PITCH], const T* src, int r0, int k0, int rows, int depth, bool vec) {
  constexpr int N = 16 / sizeof(T), CHUNKS = FEW_DEPTH / N;
  if (vec) {
#pragma unroll
    for (int j = 0; j < ROWS * CHUNKS / FEW_THREADS; j++) {
      int i = threadIdx.x + j * FEW_THREADS, r = i / CHUNKS, c = i % CHUNKS * N;
      bool inside = r0 + r < rows && k0 + c < depth;
      cp_async_16(&tile[r][c], src + (inside ? size_t(r0 + r) * depth + k0 + c : 0), inside);
    }
    return;
  }
#pragma unroll 4
  for (int i = threadIdx.x; i < ROWS * FEW_DEPTH; i += FEW_THREADS) {
    int r = i / FEW_DEPTH, c = i % FEW_DEPTH;
    tile[r][c] = r0 + r < rows && k0 + c < depth ? src[size_t(r0 + r) * depth + k0 + c] : from_float<T>(0.0f);
  }
}
DEV float4 four(const float* p) { return *reinterpret_cast<const float4*>(p); }
DEV float4 four(const bf16* p) {
  uint2 v = *reinterpret_cast<const uint2*>(p);
  float2 x = unpack_bf16(v.x), y = unpack_bf16(v.y);
  return make_float4(x.x, x.y, y.x, y.y);
}
template <class W> DEV void few_f32(const Args& g, uint8_t* smem) {
  auto* stages = reinterpret_cast<FewStage<W>*>(smem);
  int n0 = blockIdx.x * FEW_COLS, column = threadIdx.x % 16, row = threadIdx.x / 16 * 2, steps = (g.k + FEW_DEPTH - 1) / FEW_DEPTH;
  auto fetch = [&](int t) {
    FewStage<W>& s = stages[t % FEW_STAGES];
    if (t < steps) {
      load_few<FEW_ROWS>(s.a, static_cast<const float*>(g.a), 0, t * FEW_DEPTH, g.m, g.k, g.flags & A_VEC);
      load_few<FEW_COLS>(s.b, static_cast<const W*>(g.b), n0, t * FEW_DEPTH, g.n, g.k, g.flags & B_VEC);
    }
    cp_async_commit();
  };
  float acc[2][2] = {};
  for (int t = 0; t < FEW_STAGES - 1; t++) fetch(t);
  for (int t = 0; t < steps; t++) {
    cp_async_wait<FEW_STAGES - 2>();
    __syncthreads();
    fetch(t + FEW_STAGES - 1);
    FewStage<W>& s = stages[t % FEW_STAGES];
#pragma unroll 4
    for (int k = 0; k < (row < g.m ? FEW_DEPTH : 0); k += 4)
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          float4 x = four(&s.a[row + i][k]), y = four(&s.b[column + 16 * j][k]);
          acc[i][j] = fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, acc[i][j]))));
        }
  }
  cp_async_wait<0>();
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      int col = n0 + column + 16 * j;
      if (row + i < g.m && col < g.n) store_one(g, row + i, col, g.alpha * acc[i][j]);
    }
}
}  // namespace

EXPORT_CONSTANT(gemm_depth, BK)
EXPORT_CONSTANT(gemm_few_rows_f32, FEW_ROWS)
EXPORT_CONSTANT(gemm_b_f32, B_F32)
EXPORT_CONSTANT(gemm_b_bf16, B_BF16)
EXPORT_CONSTANT(gemm_out_f32, OUT_F32)
EXPORT_CONSTANT(gemm_accumulate, ACCUMULATE)
EXPORT_CONSTANT(gemm_a_vec, A_VEC)
EXPORT_CONSTANT(gemm_b_vec, B_VEC)
EXPORT_CONSTANT(gemm_a2_vec, A2_VEC)
EXPORT_CONSTANT(gemm_b2_vec, B2_VEC)
EXPORT_CONSTANT(gemm_resid_f32, RESID_F32)
EXPORT_CONSTANT(gemm_b2_f32, B2_F32)

// The pointers of a tail, a bias and an addend are null where there is none.
#define ARGS                                                                                                                              \
  (void* out, const void* a, const void* b, const void* OPTIONAL a2, const void* OPTIONAL b2, const float* OPTIONAL bias, \
   const void* OPTIONAL resid, int m, int n, int k, int k2, \
   float alpha, float tail_scale, int flags)
#define PACKED {out, a, b, a2, b2, bias, resid, m, n, k, k2, alpha, tail_scale, flags}
#define TENSOR(layout, name, bm, bn, wm, wn, depth, stages, threads, blocks) \
  KERNEL(name, threads, blocks) ARGS {                                       \
    DYNAMIC_SHARED(smem);                                                    \
    Args g = PACKED;                                                         \
    if (layout == Layout::TN) take_part(g);                                  \
    tensor_gemm<layout, bm, bn, wm, wn, depth, stages>(g, smem);             \
  }                                                                          \
  EXPORT_KERNEL(name, threads)                                               \
  TILE(name, bn, bm)                                                         \
  SHARED_BYTES(name, stages * sizeof(Stage<layout, bm, bn, depth>))
// A name says its tile.
#define SQUARE(side, wm, wn, threads)                                                                   \
  TENSOR(Layout::NT, gemm_nt_##side##_bf16, side, side, wm, wn, BK, 3, threads, 2)                      \
  TENSOR(Layout::NN, gemm_nn_##side##_bf16, side, side, wm, wn, BK, 3, threads, 2)                      \
  TENSOR(Layout::TN, gemm_tn_##side##_bf16, side, side, wm, wn, BK, 3, threads, 2)
SQUARE(128, 64, 32, 256)
SQUARE(64, 32, 32, 128)
#define FEW_TENSOR(bm, bn, wm, wn, stages, threads, blocks) \
  TENSOR(Layout::NT, gemm_few_##bm##x##bn##_bf16, bm, bn, wm, wn, 128, stages, threads, blocks)
FEW_TENSOR(16, 32, 16, 8, 6, 128, 3)
FEW_TENSOR(16, 8, 16, 8, 12, 32, 3)
FEW_TENSOR(64, 32, 64, 8, 4, 128, 2)
#define FMA(layout, name)                                  \
  KERNEL(name, F_THREADS, 1) ARGS {                        \
    Args g = PACKED;                                       \
    fma_gemm<layout>(g);                                   \
  }                                                        \
  EXPORT_KERNEL(name, F_THREADS)                           \
  TILE(name, FN, FM)
FMA(Layout::NT, gemm_nt_f32)
FMA(Layout::NN, gemm_nn_f32)
FMA(Layout::TN, gemm_tn_f32)
#define FEW(W, name)                  \
  KERNEL(name, FEW_THREADS, 3) ARGS { \
    DYNAMIC_SHARED(smem);             \
    Args g = PACKED;                  \
    few_f32<W>(g, smem);              \
  }                                   \
  EXPORT_KERNEL(name, FEW_THREADS)    \
  TILE(name, FEW_COLS, FEW_ROWS)      \
  SHARED_BYTES(name, FEW_STAGES * sizeof(FewStage<W>))
FEW(float, gemm_few_f32)
FEW(bf16, gemm_few_f32_bf16)
