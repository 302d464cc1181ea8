// The Hopper matrix product: out (M, N) = alpha a b, bf16, f32 accumulation; NT a (M, K), b (N, K) or NN b (K, N). Rows of 16-byte multiples.
//
// Persistent blocks of three warpgroups: one thread of the first issues TMA loads of 128 x 64 and 64 x 128 boxes into a ring of 4 stages,
// two consumer warpgroups run wgmma m64n128k16 on the upper and the lower half of a 128 x 128 tile, write it through swizzled shared
// memory and store it by TMA while the next tile begins. `full` barriers count bytes, `empty` ones count consumers.
// 2 M N K FLOP. Bytes: as gemm.cu. Neighbouring tiles share rows of a in L2.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | 128 x 128 x 64, 4 stages, 1 producer and 2 consumers | not measured on a GPU yet | | |
#include "ptx_sm90.cuh"

namespace {
constexpr int BM = 128, BN = 128, BK = 64, STAGES = 4, CONSUMERS = 2, THREADS = 384;
struct alignas(1024) Smem {
  bf16 a[STAGES][BM * BK];
  bf16 b[STAGES][BN * BK];
  bf16 c[CONSUMERS][2][64 * 64];  // 64 columns are one swizzled row of 128 bytes
  uint64_t full[STAGES], empty[STAGES];
};

template <bool NN> DEV void produce(Smem& s, const TensorMap& ma, const TensorMap& mb, int tiles, int tiles_n, int steps) {
  int it = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int m0 = tile / tiles_n * BM, n0 = tile % tiles_n * BN;
    for (int t = 0; t < steps; t++, it++) {
      int st = it % STAGES, phase = it / STAGES & 1;
      mbar_wait(&s.empty[st], phase ^ 1);
      mbar_arrive_expect_tx(&s.full[st], (BM + BN) * BK * 2);
      tma_load_2d(s.a[st], &ma, &s.full[st], t * BK, m0);
      if (!NN) tma_load_2d(s.b[st], &mb, &s.full[st], t * BK, n0);
      else for (int h = 0; h < BN / 64; h++) tma_load_2d(s.b[st] + h * 64 * BK, &mb, &s.full[st], n0 + h * 64, t * BK);
    }
  }
}

// Registers to swizzled shared memory to global memory, in halves of 64 columns.
DEV void store_tile(Smem& s, const TensorMap& mc, const float (&acc)[BN / 2], int group, int m0, int n0, float alpha) {
  int tid = threadIdx.x % 128, lane = tid % 32, warp = tid / 32;
  if (tid == 0) tma_store_wait_read<0>();
  if (group == 0) named_barrier<1, 128>();
  else named_barrier<2, 128>();
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      int row = warp * 16 + lane % 16, chunk = j + lane / 16;
      const float* d = &acc[(h * 8 + j) * 4];
      stmatrix_x4(&s.c[group][h][row * 64 + (chunk ^ row % 8) * 8], pack_bf16(alpha * d[0], alpha * d[1]), pack_bf16(alpha * d[2], alpha * d[3]),
                  pack_bf16(alpha * d[4], alpha * d[5]), pack_bf16(alpha * d[6], alpha * d[7]));
    }
  fence_proxy_async();
  if (group == 0) named_barrier<1, 128>();
  else named_barrier<2, 128>();
  if (tid == 0) {
    for (int h = 0; h < 2; h++) tma_store_2d(&mc, s.c[group][h], n0 + h * 64, m0 + group * 64);
    tma_store_commit();
  }
}

template <bool NN> DEV void consume(Smem& s, const TensorMap& mc, int group, int tiles, int tiles_n, int steps, float alpha) {
  int tid = threadIdx.x % 128, it = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int m0 = tile / tiles_n * BM, n0 = tile % tiles_n * BN, previous = -1;
    float acc[BN / 2];
    for (int t = 0; t < steps; t++, it++) {
      int st = it % STAGES, phase = it / STAGES & 1;
      mbar_wait(&s.full[st], phase);
      wgmma_fence();
      uint64_t da = wgmma_descriptor(s.a[st] + group * 64 * BK, 16, 1024);
      uint64_t db = NN ? wgmma_descriptor(s.b[st], 64 * BK * 2, 1024) : wgmma_descriptor(s.b[st], 16, 1024);
#pragma unroll
      for (int kk = 0; kk < BK / 16; kk++) wgmma_bf16<BN, 0, NN>(acc, da + kk * 2, db + kk * (NN ? 128 : 2), t > 0 || kk > 0);
      wgmma_commit();
      wgmma_wait<1>();     // the stage before is read to its end
      if (previous >= 0 && tid == 0) mbar_arrive(&s.empty[previous]);
      previous = st;
    }
    wgmma_wait<0>();
    wgmma_done(acc);
    if (previous >= 0 && tid == 0) mbar_arrive(&s.empty[previous]);
    store_tile(s, mc, acc, group, m0, n0, alpha);
  }
  if (tid == 0) tma_store_wait<0>();
}

template <bool NN> DEV void gemm(const TensorMap& ma, const TensorMap& mb, const TensorMap& mc, int m, int n, int k, float alpha, uint8_t* raw) {
  Smem& s = *reinterpret_cast<Smem*>(raw);
  int group = threadIdx.x / 128, tiles_n = (n + BN - 1) / BN, tiles = (m + BM - 1) / BM * tiles_n, steps = (k + BK - 1) / BK;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) { mbar_init(&s.full[i], 1); mbar_init(&s.empty[i], CONSUMERS); }
    mbar_fence_init();
  }
  __syncthreads();
  if (group == 0) {
    setmaxnreg_dec<40>();
    if (threadIdx.x == 0) produce<NN>(s, ma, mb, tiles, tiles_n, steps);
  } else {
    setmaxnreg_inc<232>();
    consume<NN>(s, mc, group - 1, tiles, tiles_n, steps, alpha);
  }
}
}  // namespace

#define MAPS const __grid_constant__ TensorMap ma, const __grid_constant__ TensorMap mb, const __grid_constant__ TensorMap mc
KERNEL(gemm_nt_wgmma, THREADS, 1)(MAPS, int m, int n, int k, float alpha) {
  DYNAMIC_SHARED(smem);
  gemm<false>(ma, mb, mc, m, n, k, alpha, smem);
}
EXPORT_KERNEL(gemm_nt_wgmma, THREADS)
KERNEL(gemm_nn_wgmma, THREADS, 1)(MAPS, int m, int n, int k, float alpha) {
  DYNAMIC_SHARED(smem);
  gemm<true>(ma, mb, mc, m, n, k, alpha, smem);
}
EXPORT_KERNEL(gemm_nn_wgmma, THREADS)
