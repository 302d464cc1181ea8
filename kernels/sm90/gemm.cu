// The Hopper matrix product: out (M, N) = alpha (a b + tail_scale a2 b2) [+ bias (N)] [+ resid (M, N)] [+ out], bf16, f32 accumulation;
// NT a (M, K), b (N, K) or NN b (K, N). Rows of 16-byte multiples; any M, N, K, K2: TMA reads zeros outside a matrix and writes nothing there.
//
// Persistent blocks of three warpgroups. One thread of the first issues TMA loads into a ring of stages, each of a 128 x 64 box of a and BN x 64
// of b; two consumer warpgroups run wgmma m64nBNk16 on the upper and the lower half of a 128 x BN tile. `full` barriers count bytes, `empty` ones
// consumers. A tile's steps are: the tail (of its last stage only as many products as it has 16s of depth), K, and what is added to the tile.
// BN = 256: 4 stages of 48 KiB, 128 accumulators a thread; 128: 6 stages of 32 KiB, for products that have too few tiles; 64: 8 stages of 24 KiB, for
// the few columns of a LoRA's u and du, which read a once at the rate of memory (and have no bf16 addend).
//
// A bf16 addend (resid, or out itself) is such a step of 128 columns: TMA brings it while wgmma still runs, in whole lines and with no rule for
// edges, and ldmatrix reads it in the accumulators' own layout from where stmatrix writes (swizzled: no bank conflicts). A second ring for it would
// not fit beside 192 KiB. An f32 resid is read from global memory: 4 lanes read one whole sector of 32 bytes, so that a detour would save nothing.
// The tile leaves in boxes of 64 columns through two buffers: one is stored by TMA while the next is written, and the next tile's loads
// have long begun.
//
// Tiles go in groups of GROUP tile rows, down the rows first: the 132 tiles of a wave are 16 x 8, whose 16 and 8 strips of a and b
// have the least bytes, and a group's strip of a stays in L2 while b passes.
// 2 M N (K + K2) FLOP. Bytes: as gemm.cu.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | 128 x 128 x 64, 4 stages, 1 producer and 2 consumers | not measured on a GPU | | |
// | 2 | 128 x 256 tiles, grouped raster; tail, bias, resid, accumulation | not measured on a GPU yet | | |
#include "ptx_sm90.cuh"

namespace {
constexpr int BM = 128, BK = 64, CONSUMERS = 2, THREADS = 384, GROUP = 16;
// An addend's step fills the first 32 KiB of a stage: two boxes of 64 x 64 for each consumer.
constexpr int SIDE = 64, BOX = SIDE * SIDE;

template <int BN> struct alignas(1024) Smem {
  static constexpr int STAGES = 192 * 1024 / (2 * BK * (BM + BN));
  bf16 ring[STAGES][(BM + BN) * BK];
  bf16 c[CONSUMERS][2][BOX];  // 64 columns are one swizzled row of 128 bytes
  uint64_t full[STAGES], empty[STAGES];
};

struct Args {
  int m, n, k, k2;
  float alpha, tail_scale;
  const float *bias, *resid;
  int addend;
};

// Where the ring stands: the producer and the consumers take the same steps.
template <int STAGES> struct Position {
  int stage = 0, phase = 0;
  DEV void next() {
    if (++stage == STAGES) { stage = 0; phase ^= 1; }
  }
};

struct Tile {
  int m0, n0;
};
template <int BN> DEV int tile_count(const Args& g) { return (g.m + BM - 1) / BM * ((g.n + BN - 1) / BN); }
template <int BN> DEV Tile tile_at(int i, const Args& g) {
  int tiles_m = (g.m + BM - 1) / BM, in_group = GROUP * ((g.n + BN - 1) / BN);
  int first = i / in_group * GROUP, rows = min(GROUP, tiles_m - first), rest = i % in_group;
  return {(first + rest % rows) * BM, rest / rows * BN};
}

// ---- the producer ----
template <int BN, bool NN> DEV void load_step(Smem<BN>& s, int st, const TensorMap& ma, const TensorMap& mb, int k0, Tile tile) {
  bf16 *a = s.ring[st], *b = a + BM * BK;
  mbar_arrive_expect_tx(&s.full[st], (BM + BN) * BK * 2);
  tma_load_2d(a, &ma, &s.full[st], k0, tile.m0);
  if (!NN) tma_load_2d(b, &mb, &s.full[st], k0, tile.n0);
  else for (int h = 0; h < BN / 64; h++) tma_load_2d(b + h * 64 * BK, &mb, &s.full[st], tile.n0 + h * 64, k0);
}

template <int BN, bool NN>
DEV void produce(Smem<BN>& s, const TensorMap& ma, const TensorMap& mb, const TensorMap& ma2, const TensorMap& mb2, const TensorMap& mx, const Args& g) {
  Position<Smem<BN>::STAGES> at;
  int tail = (g.k2 + BK - 1) / BK, last = tail + (g.k + BK - 1) / BK, steps = last + (g.addend ? BN / 128 : 0);
  for (int i = blockIdx.x; i < tile_count<BN>(g); i += gridDim.x) {
    Tile tile = tile_at<BN>(i, g);
    for (int t = 0; t < steps; t++, at.next()) {
      int st = at.stage, phase = at.phase;
      mbar_wait(&s.empty[st], phase ^ 1);
      if (t < tail) load_step<BN, NN>(s, st, ma2, mb2, t * BK, tile);
      else if (t < last) load_step<BN, NN>(s, st, ma, mb, (t - tail) * BK, tile);
      else {
        mbar_arrive_expect_tx(&s.full[st], CONSUMERS * 2 * BOX * 2);
        for (int q = 0; q < CONSUMERS * 2; q++)
          tma_load_2d(s.ring[st] + q * BOX, &mx, &s.full[st], tile.n0 + (t - last) * 128 + q % 2 * 64, tile.m0 + q / 2 * 64);
      }
    }
  }
}

// ---- the consumers ----
DEV void group_barrier(int group) {
  if (group == 0) named_barrier<1, 128>();
  else named_barrier<2, 128>();
}

// Starts the products of one step, `depth` of its BK deep, and frees the stage of the step before. Four products are one group, an end of the tail one
// each: nvcc closes a group at every branch.
template <int BN, bool NN>
DEV void multiply(Smem<BN>& s, float (&acc)[BN / 2], Position<Smem<BN>::STAGES>& at, int& previous, int group, int depth, bool first) {
  int st = at.stage;
  mbar_wait(&s.full[st], at.phase);
  wgmma_fence();
  const bf16 *a = s.ring[st] + group * 64 * BK, *b = s.ring[st] + BM * BK;
  uint64_t da = wgmma_descriptor(a, 16, 1024), db = NN ? wgmma_descriptor(b, 64 * BK * 2, 1024) : wgmma_descriptor(b, 16, 1024);
  if (depth >= BK) {
#pragma unroll
    for (int kk = 0; kk < BK / 16; kk++) wgmma_bf16<BN, 0, NN>(acc, da + kk * 2, db + kk * (NN ? 128 : 2), !first || kk > 0);
    wgmma_commit();
  } else {
#pragma unroll 1
    for (int kk = 0; kk * 16 < depth; kk++) {
      wgmma_bf16<BN, 0, NN>(acc, da + kk * 2, db + kk * (NN ? 128 : 2), !first || kk > 0);
      wgmma_commit();
    }
  }
  wgmma_wait<1>();     // the stage before is read to its end
  if (previous >= 0 && threadIdx.x % 128 == 0) mbar_arrive(&s.empty[previous]);
  previous = st;
  at.next();
}

// 64 columns of accumulators: alpha, bias and f32 resid of (row, col), (row + 8, col) and every eighth column after.
template <int BN> DEV void finish(float (&acc)[BN / 2], int h, const Args& g, int row, int col) {
  float* d = &acc[h * 32];
#pragma unroll
  for (int e = 0; e < 32; e++) d[e] *= g.alpha;
  if (g.bias) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float2 b = col + j * 8 < g.n ? *reinterpret_cast<const float2*>(g.bias + col + j * 8) : make_float2(0.0f, 0.0f);
      d[j * 4] += b.x; d[j * 4 + 1] += b.y; d[j * 4 + 2] += b.x; d[j * 4 + 3] += b.y;
    }
  }
  if (g.resid) {
#pragma unroll
    for (int j = 0; j < 16; j++) {
      int r = row + j % 2 * 8, c = col + j / 2 * 8;
      float2 x = r < g.m && c < g.n ? *reinterpret_cast<const float2*>(g.resid + size_t(r) * g.n + c) : make_float2(0.0f, 0.0f);
      d[j * 2] += x.x; d[j * 2 + 1] += x.y;
    }
  }
}

// Where chunk j + lane / 16 (8 columns) of row warp * 16 + lane % 16 lies in a swizzled box: what stmatrix and ldmatrix ask each lane for.
DEV int box_offset(int j) {
  int tid = threadIdx.x % 128, lane = tid % 32, row = tid / 32 * 16 + lane % 16, chunk = j + lane / 16;
  return row * 64 + (chunk ^ row % 8) * 8;
}

// The accumulators to swizzled shared memory to global memory, in boxes of 64 columns.
template <int BN>
DEV void store_tile(Smem<BN>& s, const TensorMap& mc, float (&acc)[BN / 2], Position<Smem<BN>::STAGES>& at, const Args& g, int group, Tile tile) {
  int tid = threadIdx.x % 128, m0 = tile.m0 + group * 64;
#pragma unroll
  for (int h = 0; h < BN / 64; h++) {
    int n0 = tile.n0 + h * 64;
    float* d = &acc[h * 32];
    finish<BN>(acc, h, g, m0 + tid / 32 * 16 + tid % 32 / 4, n0 + tid % 4 * 2);
    if (g.addend) {
      if (h % 2 == 0) mbar_wait(&s.full[at.stage], at.phase);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t x[4];
        ldmatrix_x4(x, s.ring[at.stage] + (group * 2 + h % 2) * BOX + box_offset(j));
#pragma unroll
        for (int e = 0; e < 4; e++) {
          float2 v = unpack_bf16(x[e]);
          d[j * 4 + e * 2] += v.x; d[j * 4 + e * 2 + 1] += v.y;
        }
      }
    }
    bf16* box = s.c[group][h % 2];
    if (tid == 0) tma_store_wait_read<BN == 64 ? 0 : 1>();  // what was in the box is stored
    group_barrier(group);
#pragma unroll
    for (int j = 0; j < 8; j += 2, d += 8)
      stmatrix_x4(box + box_offset(j), pack_bf16(d[0], d[1]), pack_bf16(d[2], d[3]), pack_bf16(d[4], d[5]), pack_bf16(d[6], d[7]));
    fence_proxy_async();
    group_barrier(group);
    if (tid == 0) {
      tma_store_2d(&mc, box, n0, m0);
      tma_store_commit();
    }
    if (g.addend && h % 2 == 1) {  // both boxes of the addend's stage are read
      if (tid == 0) mbar_arrive(&s.empty[at.stage]);
      at.next();
    }
  }
}

template <int BN, bool NN> DEV void consume(Smem<BN>& s, const TensorMap& mc, const Args& g, int group) {
  Position<Smem<BN>::STAGES> at;
  int tail = (g.k2 + BK - 1) / BK, steps = (g.k + BK - 1) / BK;
  for (int i = blockIdx.x; i < tile_count<BN>(g); i += gridDim.x) {
    int previous = -1;
    float acc[BN / 2];
#pragma unroll 1
    for (int t = 0; t < tail; t++) multiply<BN, NN>(s, acc, at, previous, group, g.k2 - t * BK, t == 0);
    if (tail > 0 && g.tail_scale != 1.0f) {
      wgmma_wait<0>();
      wgmma_done(acc);
#pragma unroll
      for (int e = 0; e < BN / 2; e++) acc[e] *= g.tail_scale;
    }
    for (int t = 0; t < steps; t++) multiply<BN, NN>(s, acc, at, previous, group, BK, t + tail == 0);
    wgmma_wait<0>();
    wgmma_done(acc);
    if (previous >= 0 && threadIdx.x % 128 == 0) mbar_arrive(&s.empty[previous]);
    store_tile<BN>(s, mc, acc, at, g, group, tile_at<BN>(i, g));
  }
  if (threadIdx.x % 128 == 0) tma_store_wait<0>();
}

template <int BN, bool NN>
DEV void gemm(const TensorMap& ma, const TensorMap& mb, const TensorMap& ma2, const TensorMap& mb2, const TensorMap& mx, const TensorMap& mc,
              const Args& g, uint8_t* raw) {
  Smem<BN>& s = *reinterpret_cast<Smem<BN>*>(raw);
  int group = __shfl_sync(FULL_MASK, int(threadIdx.x) / 128, 0);  // so that the compiler knows it is one for a warp
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&ma); prefetch_tensor_map(&mb); prefetch_tensor_map(&mc);
    if (g.k2 > 0) { prefetch_tensor_map(&ma2); prefetch_tensor_map(&mb2); }
    if (g.addend) prefetch_tensor_map(&mx);
    for (int i = 0; i < Smem<BN>::STAGES; i++) { mbar_init(&s.full[i], 1); mbar_init(&s.empty[i], CONSUMERS); }
    mbar_fence_init();
  }
  __syncthreads();
  if (group == 0) {
    setmaxnreg_dec<40>();
    if (threadIdx.x == 0) produce<BN, NN>(s, ma, mb, ma2, mb2, mx, g);
  } else {
    setmaxnreg_inc<232>();
    consume<BN, NN>(s, mc, g, group - 1);
  }
}
}  // namespace

#define MAP(name) const __grid_constant__ TensorMap name
#define WGMMA_AS(name, bn, nn)                                                                                                                     \
  KERNEL(name, THREADS, 1)(MAP(ma), MAP(mb), MAP(ma2), MAP(mb2), MAP(mx), MAP(mc), const float* OPTIONAL bias, const float* OPTIONAL resid, int m, \
                           int n, int k, int k2, float alpha, float tail_scale, int addend) {                                                      \
    DYNAMIC_SHARED(smem);                                                                                                                          \
    Args g = {m, n, k, k2, alpha, tail_scale, bias, resid, addend};                                                                                \
    gemm<bn, nn>(ma, mb, ma2, mb2, mx, mc, g, smem);                                                                                               \
  }                                                                                                                                                \
  EXPORT_KERNEL(name, THREADS)                                                                                                                     \
  TILE(name, bn, BM)                                                                                                                               \
  SHARED_BYTES(name, sizeof(Smem<bn>))
// A name says its columns.
#define WGMMA(bn)                             \
  WGMMA_AS(gemm_nt_##bn##_wgmma, bn, false)   \
  WGMMA_AS(gemm_nn_##bn##_wgmma, bn, true)
WGMMA(64)
WGMMA(128)
WGMMA(256)
// Rows of a tile, depth of a step, and the side of the boxes that carry results, addends and b of NN.
EXPORT_CONSTANT(wgmma_rows, BM)
EXPORT_CONSTANT(wgmma_depth, BK)
EXPORT_CONSTANT(wgmma_box, SIDE)
