// One wrapper per PTX instruction of sm_90a, each with its host twin: mbarriers, TMA, wgmma, clusters.
#pragma once
#include "ptx.cuh"

// ---- mbarrier ----
DEV void mbar_init(uint64_t* bar, uint32_t count WHERE) {
  TWIN(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(smem_u32(bar)), "r"(count) : "memory"), emu::mbar_init(bar, count PASS_WHERE));
}
DEV void mbar_fence_init() { TWIN(asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"), emu::mbar_fence_init()); }
DEV void mbar_arrive(uint64_t* bar WHERE) {
  TWIN(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(smem_u32(bar)) : "memory"), emu::mbar_arrive(bar, 0, true PASS_WHERE));
}
DEV void mbar_arrive_expect_tx(uint64_t* bar, uint32_t bytes WHERE) {
  TWIN(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(smem_u32(bar)), "r"(bytes) : "memory"), emu::mbar_arrive(bar, bytes, true PASS_WHERE));
}
// Arrives at the same barrier of another block of the cluster.
DEV void mbar_arrive_remote(uint64_t* bar, uint32_t rank WHERE) {
#if defined(__CUDACC__)
  asm volatile("{\n.reg .b32 a;\nmapa.shared::cluster.u32 a, %0, %1;\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [a];\n}\n" ::"r"(smem_u32(bar)), "r"(rank) : "memory");
#else
  emu::mbar_arrive(static_cast<uint64_t*>(emu::map_shared_rank(bar, rank PASS_WHERE)), 0, true PASS_WHERE);
#endif
}
DEV void mbar_wait(uint64_t* bar, uint32_t parity WHERE) {
#if defined(__CUDACC__)
  asm volatile("{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}\n" ::"r"(smem_u32(bar)), "r"(parity) : "memory");
#else
  emu::mbar_wait(bar, parity PASS_WHERE);
#endif
}

// ---- TMA: boxes of a tensor between global and shared memory ----
DEV void fence_proxy_async() { TWIN(asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"), emu::fence_proxy_async()); }
DEV void prefetch_tensor_map(const TensorMap* map) { TWIN(asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory"), (void)map); }
DEV void tma_load_2d(void* dst, const TensorMap* map, uint64_t* bar, int x, int y WHERE) {
#if defined(__CUDACC__)
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];\n"
      ::"r"(smem_u32(dst)), "l"(map), "r"(smem_u32(bar)), "r"(x), "r"(y) : "memory");
#else
  int c[2] = {x, y};
  emu::tma_load(dst, map, bar, c, 2, 0 PASS_WHERE);
#endif
}
// The same box into every block of the cluster named by `mask`, at the same offsets.
DEV void tma_load_2d_multicast(void* dst, const TensorMap* map, uint64_t* bar, uint16_t mask, int x, int y WHERE) {
#if defined(__CUDACC__)
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;\n"
      ::"r"(smem_u32(dst)), "l"(map), "r"(smem_u32(bar)), "r"(x), "r"(y), "h"(mask) : "memory");
#else
  int c[2] = {x, y};
  emu::tma_load(dst, map, bar, c, 2, mask PASS_WHERE);
#endif
}
DEV void tma_store_2d(const TensorMap* map, const void* src, int x, int y WHERE) {
#if defined(__CUDACC__)
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];\n" ::"l"(map), "r"(smem_u32(src)), "r"(x), "r"(y) : "memory");
#else
  int c[2] = {x, y};
  emu::tma_store(map, src, c, 2, false PASS_WHERE);
#endif
}
DEV void tma_reduce_add_2d(const TensorMap* map, const void* src, int x, int y WHERE) {
#if defined(__CUDACC__)
  asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];\n" ::"l"(map), "r"(smem_u32(src)), "r"(x), "r"(y) : "memory");
#else
  int c[2] = {x, y};
  emu::tma_store(map, src, c, 2, true PASS_WHERE);
#endif
}
DEV void tma_store_commit() { TWIN(asm volatile("cp.async.bulk.commit_group;\n" ::: "memory"), emu::tma_store_commit()); }
template <int N> DEV void tma_store_wait_read() { TWIN(asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(N) : "memory"), emu::tma_store_wait(N, true)); }
template <int N> DEV void tma_store_wait() { TWIN(asm volatile("cp.async.bulk.wait_group %0;\n" ::"n"(N) : "memory"), emu::tma_store_wait(N, false)); }

DEV void stmatrix_x4(void* row, uint32_t a, uint32_t b, uint32_t c, uint32_t d WHERE) {
#if defined(__CUDACC__)
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(smem_u32(row)), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
#else
  uint32_t r[4] = {a, b, c, d};
  emu::stmatrix(r, 4, false, row PASS_WHERE);
#endif
}
template <int R> DEV void setmaxnreg_inc(WHERE0) { TWIN(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(R)), emu::setmaxnreg(R, true PASS_WHERE)); }
template <int R> DEV void setmaxnreg_dec(WHERE0) { TWIN(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(R)), emu::setmaxnreg(R, false PASS_WHERE)); }

// ---- wgmma ----
// Descriptor of a tile with 128-byte swizzle. K-major (64 bf16 in a row of 128 bytes): lbo unused, sbo = 1024; the next 16 of K add 2.
// MN-major: lbo = bytes between blocks of 64 columns, sbo = 1024 (8 rows of K); the next 16 of K add 128.
DEV uint64_t wgmma_descriptor(const void* tile, uint32_t lbo_bytes, uint32_t sbo_bytes) {
  uint64_t d = (smem_u32(tile) & 0x3FFFF) >> 4;
  d |= uint64_t((lbo_bytes & 0x3FFFF) >> 4) << 16;
  d |= uint64_t((sbo_bytes & 0x3FFFF) >> 4) << 32;
  return d | (1ull << 62);
}
DEV void wgmma_fence() { TWIN(asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"), emu::wgmma_fence()); }
DEV void wgmma_commit() { TWIN(asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"), emu::wgmma_commit()); }
template <int N> DEV void wgmma_wait(WHERE0) { TWIN(asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory"), emu::wgmma_wait(N PASS_WHERE)); }
// After the wait: no use of d may move above it.
template <int N> DEV void wgmma_done(float (&d)[N]) {
#if defined(__CUDACC__)
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
#else
  (void)d;
#endif
}
#if defined(__CUDACC__)
template <int N> struct Wgmma;
#include "wgmma_generated.cuh"
#endif
// d (64, N) = [d +] a (64, 16) b (16, N), bf16; TB 1 if b is N-major. d must stay one local array from the first call to the wait.
template <int N, int TA, int TB> DEV void wgmma_bf16(float (&d)[N / 2], uint64_t da, uint64_t db, int scale_d WHERE) {
#if defined(__CUDACC__)
  Wgmma<N>::template bf16_ss<TA, TB>(d, da, db, scale_d);
#else
  emu::wgmma(d, N, nullptr, da, db, scale_d != 0, TA, TB, emu::Operand::Bf16 PASS_WHERE);
#endif
}
// a in registers, in the layout of mma.sync's a: rows 16 * warp + lane / 4 (+ 8), columns lane % 4 * 2 (+ 8).
template <int N, int TB> DEV void wgmma_bf16_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t db, int scale_d WHERE) {
#if defined(__CUDACC__)
  Wgmma<N>::template bf16_rs<TB>(d, a, db, scale_d);
#else
  emu::wgmma(d, N, a, 0, db, scale_d != 0, false, TB, emu::Operand::Bf16 PASS_WHERE);
#endif
}
// d (64, N) = [d +] a (64, 32) b (32, N), e4m3, both K-major.
template <int N> DEV void wgmma_e4m3(float (&d)[N / 2], uint64_t da, uint64_t db, int scale_d WHERE) {
#if defined(__CUDACC__)
  Wgmma<N>::e4m3_ss(d, da, db, scale_d);
#else
  emu::wgmma(d, N, nullptr, da, db, scale_d != 0, false, false, emu::Operand::E4m3 PASS_WHERE);
#endif
}

// ---- clusters ----
DEV void cluster_sync(WHERE0) { TWIN(asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory"), emu::cluster_sync(file, line)); }
DEV uint32_t cluster_rank() {
#if defined(__CUDACC__)
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
#else
  return emu::cluster_rank();
#endif
}
// The same shared variable of another block of the cluster.
template <class T> DEV T* cluster_map(T* p, uint32_t rank WHERE) {
#if defined(__CUDACC__)
  uint64_t a;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(a) : "l"(p), "r"(rank));
  return reinterpret_cast<T*>(a);
#else
  return static_cast<T*>(emu::map_shared_rank(p, rank PASS_WHERE));
#endif
}
