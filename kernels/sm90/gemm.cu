// The Hopper matrix product: one launch makes up to 3 products of as many rows, out (M, N) = alpha sum(a b) [+ bias (N)] [+ resid (M, N)] [+ out] each, with
// up to 6 terms a b in all; bf16, f32 accumulation; NT a (M, K), b (N, K) or NN b (K, N). Rows of 16-byte multiples; any M, N, K: TMA reads zeros outside a
// matrix and writes nothing there. A term is more columns of K: the low-rank part of LoRA is one, and the gradient of an input that several layers read is a
// single product of as many terms, stored once. `Plan` is the whole description; what there is of it costs a few integer instructions a tile.
//
// Persistent blocks of three warpgroups. One thread of the first issues TMA loads into a ring of stages, each of a 128 x 64 box of a and BN x 64
// of b; two consumer warpgroups run wgmma m64nBNk16 on the upper and the lower half of a 128 x BN tile. `full` barriers count bytes, `empty` ones
// consumers. A tile's steps are: each term's K (of its last stage only as many products as it has 16s of depth), and what is added to the tile.
// BN = 256: 4 stages of 48 KiB, 128 accumulators a thread; 128: 6 stages of 32 KiB, for products that have too few tiles; 64: 8 stages of 24 KiB, for
// the few columns of a LoRA's u and du, which read a once at the rate of memory, and for few rows.
//
// A bf16 addend (resid, or out itself) is such a step of up to 128 columns: TMA brings it while wgmma still runs, in whole lines and with no rule for
// edges, and ldmatrix reads it in the accumulators' own layout from where stmatrix writes (swizzled: no bank conflicts). A second ring for it would
// not fit beside 192 KiB. An f32 resid is read from global memory: 4 lanes read one whole sector of 32 bytes, so that a detour would save nothing; nor would
// one for an f32 out (`wide`: logits), whose sectors are written whole.
// Any other tile leaves in boxes of 64 columns through two buffers: one is stored by TMA while the next is written, and the next tile's loads
// have long begun.
//
// Tiles go in groups of GROUP tile rows, down the rows first: the 132 tiles of a wave are 16 x 8, whose 16 and 8 strips of a and b
// have the least bytes, and a group's strip of a stays in L2 while b passes. Products follow each other: a wave's last tiles are the next one's first.
// 2 M N K FLOP a term. Bytes: as gemm.cu.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | 128 x 128 x 64, 4 stages, 1 producer and 2 consumers | not measured on a GPU | | |
// | 2 | 128 x 256 tiles, grouped raster; tail, bias, resid, accumulation | not measured on a GPU | | |
// | 3 | several products and terms a launch; f32 out; addends in tiles of 64 columns | not measured on a GPU yet | | |
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

constexpr int PRODUCTS = 3, TERMS = 6;
// What is computed, as src/ops/gemm/wgmma.rs writes it. Term t has maps 2 t (a) and 2 t + 1 (b), product p 2 TERMS + 2 p (out) and the one behind (addend).
struct Plan {
  int products, columns[PRODUCTS], first[PRODUCTS + 1] /* its terms */, addend[PRODUCTS], depth[TERMS];
};
struct Args {
  const TensorMapList& maps;
  const Plan& plan;
  const float* bias[PRODUCTS];
  const float* resid;  // f32, of a single product, like `wide`: out in f32
  float* wide;
  int m;
  float alpha;
};
// Columns of an addend's step.
template <int BN> constexpr int SPAN = BN < 128 ? BN : 128;

// Where the ring stands: the producer and the consumers take the same steps.
template <int STAGES> struct Position {
  int stage = 0, phase = 0;
  DEV void next() {
    if (++stage == STAGES) { stage = 0; phase ^= 1; }
  }
};

struct Tile {
  int product, m0, n0;
};
template <int BN> DEV int tile_count(const Args& g) {
  int strips = 0;
  for (int p = 0; p < g.plan.products; p++) strips += (g.plan.columns[p] + BN - 1) / BN;
  return (g.m + BM - 1) / BM * strips;
}
template <int BN> DEV Tile tile_at(int i, const Args& g) {
  int tiles_m = (g.m + BM - 1) / BM, p = 0, strips = (g.plan.columns[0] + BN - 1) / BN;
  while (i >= tiles_m * strips) {
    i -= tiles_m * strips;
    strips = (g.plan.columns[++p] + BN - 1) / BN;
  }
  int in_group = GROUP * strips, first = i / in_group * GROUP, rows = min(GROUP, tiles_m - first), rest = i % in_group;
  return {p, (first + rest % rows) * BM, rest / rows * BN};
}

// ---- the producer ----
template <int BN, bool NN> DEV void load_step(Smem<BN>& s, int st, const TensorMap& ma, const TensorMap& mb, int k0, const Tile& tile) {
  bf16 *a = s.ring[st], *b = a + BM * BK;
  mbar_arrive_expect_tx(&s.full[st], (BM + BN) * BK * 2);
  tma_load_2d(a, &ma, &s.full[st], k0, tile.m0);
  if (!NN) tma_load_2d(b, &mb, &s.full[st], k0, tile.n0);
  else for (int h = 0; h < BN / 64; h++) tma_load_2d(b + h * 64 * BK, &mb, &s.full[st], tile.n0 + h * 64, k0);
}
template <int BN> DEV void load_addend(Smem<BN>& s, int st, const TensorMap& map, int n0, int m0) {
  constexpr int BOXES = SPAN<BN> / 64;
  mbar_arrive_expect_tx(&s.full[st], CONSUMERS * BOXES * BOX * 2);
  for (int q = 0; q < CONSUMERS * BOXES; q++) tma_load_2d(s.ring[st] + q * BOX, &map, &s.full[st], n0 + q % BOXES * 64, m0 + q / BOXES * 64);
}

template <int BN, bool NN> DEV void produce(Smem<BN>& s, const Args& g) {
  Position<Smem<BN>::STAGES> at;
  for (int i = blockIdx.x; i < tile_count<BN>(g); i += gridDim.x) {
    Tile tile = tile_at<BN>(i, g);
    for (int t = g.plan.first[tile.product]; t < g.plan.first[tile.product + 1]; t++)
      for (int k0 = 0; k0 < g.plan.depth[t]; k0 += BK, at.next()) {
        mbar_wait(&s.empty[at.stage], at.phase ^ 1);
        load_step<BN, NN>(s, at.stage, g.maps.of[2 * t], g.maps.of[2 * t + 1], k0, tile);
      }
    if (!g.plan.addend[tile.product]) continue;
    for (int n0 = tile.n0; n0 < tile.n0 + BN; n0 += SPAN<BN>, at.next()) {
      mbar_wait(&s.empty[at.stage], at.phase ^ 1);
      load_addend<BN>(s, at.stage, g.maps.of[2 * TERMS + 2 * tile.product + 1], n0, tile.m0);
    }
  }
}

// ---- the consumers ----
DEV void group_barrier(int group) {
  if (group == 0) named_barrier<1, 128>();
  else named_barrier<2, 128>();
}

// Starts the products of one step, `depth` of its BK deep, and frees the stage of the step before. Four products are one group, an end of a term one
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

// 64 columns of accumulators: alpha, bias and f32 resid of (row, col), (row + 8, col) and every eighth column after. True if they are stored, in f32.
template <int BN> DEV bool finish(float (&acc)[BN / 2], int h, const Args& g, int product, int row, int col) {
  int n = g.plan.columns[product];
  const float* bias = product == 0 ? g.bias[0] : product == 1 ? g.bias[1] : g.bias[2];
  float* d = &acc[h * 32];
#pragma unroll
  for (int e = 0; e < 32; e++) d[e] *= g.alpha;
  if (bias) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float2 b = col + j * 8 < n ? *reinterpret_cast<const float2*>(bias + col + j * 8) : make_float2(0.0f, 0.0f);
      d[j * 4] += b.x; d[j * 4 + 1] += b.y; d[j * 4 + 2] += b.x; d[j * 4 + 3] += b.y;
    }
  }
  if (g.resid) {
#pragma unroll
    for (int j = 0; j < 16; j++) {
      int r = row + j % 2 * 8, c = col + j / 2 * 8;
      float2 x = r < g.m && c < n ? *reinterpret_cast<const float2*>(g.resid + size_t(r) * n + c) : make_float2(0.0f, 0.0f);
      d[j * 2] += x.x; d[j * 2 + 1] += x.y;
    }
  }
  if (!g.wide) return false;
#pragma unroll
  for (int j = 0; j < 16; j++) {
    int r = row + j % 2 * 8, c = col + j / 2 * 8;
    if (r < g.m && c < n) *reinterpret_cast<float2*>(g.wide + size_t(r) * n + c) = make_float2(d[j * 2], d[j * 2 + 1]);
  }
  return true;
}

// Where chunk j + lane / 16 (8 columns) of row warp * 16 + lane % 16 lies in a swizzled box: what stmatrix and ldmatrix ask each lane for.
DEV int box_offset(int j) {
  int tid = threadIdx.x % 128, lane = tid % 32, row = tid / 32 * 16 + lane % 16, chunk = j + lane / 16;
  return row * 64 + (chunk ^ row % 8) * 8;
}

// The accumulators to swizzled shared memory to global memory, in boxes of 64 columns.
template <int BN> DEV void store_tile(Smem<BN>& s, float (&acc)[BN / 2], Position<Smem<BN>::STAGES>& at, const Args& g, int group, const Tile& tile) {
  constexpr int BOXES = SPAN<BN> / 64;
  int tid = threadIdx.x % 128, m0 = tile.m0 + group * 64;
  bool addend = g.plan.addend[tile.product];
#pragma unroll
  for (int h = 0; h < BN / 64; h++) {
    int n0 = tile.n0 + h * 64;
    float* d = &acc[h * 32];
    if (finish<BN>(acc, h, g, tile.product, m0 + tid / 32 * 16 + tid % 32 / 4, n0 + tid % 4 * 2)) continue;
    if (addend) {
      if (h % BOXES == 0) mbar_wait(&s.full[at.stage], at.phase);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t x[4];
        ldmatrix_x4(x, s.ring[at.stage] + (group * BOXES + h % BOXES) * BOX + box_offset(j));
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
      tma_store_2d(&g.maps.of[2 * TERMS + 2 * tile.product], box, n0, m0);
      tma_store_commit();
    }
    if (addend && h % BOXES == BOXES - 1) {  // the boxes of the addend's stage are read
      if (tid == 0) mbar_arrive(&s.empty[at.stage]);
      at.next();
    }
  }
}

template <int BN, bool NN> DEV void consume(Smem<BN>& s, const Args& g, int group) {
  Position<Smem<BN>::STAGES> at;
  for (int i = blockIdx.x; i < tile_count<BN>(g); i += gridDim.x) {
    Tile tile = tile_at<BN>(i, g);
    int previous = -1;
    float acc[BN / 2];
#pragma unroll 1
    for (int t = g.plan.first[tile.product]; t < g.plan.first[tile.product + 1]; t++) {
      int depth = g.plan.depth[t];
#pragma unroll 1
      for (; depth >= BK; depth -= BK) multiply<BN, NN>(s, acc, at, previous, group, BK, previous < 0);
      if (depth > 0) multiply<BN, NN>(s, acc, at, previous, group, depth, previous < 0);
    }
    wgmma_wait<0>();
    wgmma_done(acc);
    if (previous >= 0 && threadIdx.x % 128 == 0) mbar_arrive(&s.empty[previous]);
    store_tile<BN>(s, acc, at, g, group, tile);
  }
  if (threadIdx.x % 128 == 0) tma_store_wait<0>();
}

template <int BN, bool NN> DEV void gemm(const Args& g, uint8_t* raw) {
  Smem<BN>& s = *reinterpret_cast<Smem<BN>*>(raw);
  int group = __shfl_sync(FULL_MASK, int(threadIdx.x) / 128, 0);  // so that the compiler knows it is one for a warp
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2 * g.plan.first[g.plan.products]; i++) prefetch_tensor_map(&g.maps.of[i]);
    for (int i = 0; i < Smem<BN>::STAGES; i++) { mbar_init(&s.full[i], 1); mbar_init(&s.empty[i], CONSUMERS); }
    mbar_fence_init();
  }
  __syncthreads();
  if (group == 0) {
    setmaxnreg_dec<40>();
    if (threadIdx.x == 0) produce<BN, NN>(s, g);
  } else {
    setmaxnreg_inc<232>();
    consume<BN, NN>(s, g, group - 1);
  }
}
}  // namespace

#define WGMMA_AS(name, bn, nn)                                                                                                                       \
  KERNEL(name, THREADS, 1)(const __grid_constant__ TensorMapList maps, const __grid_constant__ Plan plan, const float* OPTIONAL bias,                \
                           const float* OPTIONAL bias1, const float* OPTIONAL bias2, const float* OPTIONAL resid, float* OPTIONAL wide, int m,      \
                           float alpha) {                                                                                                            \
    DYNAMIC_SHARED(smem);                                                                                                                            \
    Args g = {maps, plan, {bias, bias1, bias2}, resid, wide, m, alpha};                                                                              \
    gemm<bn, nn>(g, smem);                                                                                                                           \
  }                                                                                                                                                  \
  EXPORT_KERNEL(name, THREADS)                                                                                                                       \
  TILE(name, bn, BM)                                                                                                                                 \
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
// What a launch takes at the most, and words of its plan.
EXPORT_CONSTANT(wgmma_products, PRODUCTS)
EXPORT_CONSTANT(wgmma_terms, TERMS)
EXPORT_CONSTANT(wgmma_plan_words, sizeof(Plan) / 4)
static_assert(2 * TERMS + 2 * PRODUCTS <= TENSOR_MAPS, "more maps than a list holds");
