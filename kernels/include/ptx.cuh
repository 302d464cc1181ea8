// One wrapper per PTX instruction of sm_80, each with its host twin. Inline PTX stands in no file but this and ptx_sm90.cuh.
#pragma once
#include "prelude.cuh"

DEV uint32_t smem_u32(const void* p) { return TWIN(static_cast<uint32_t>(__cvta_generic_to_shared(p)), emu::shared_address(p)); }

// 16 bytes from global to shared memory; zeros if not valid (the address must still be a sound one).
DEV void cp_async_16(void* smem, const void* gmem, bool valid WHERE) {
  int n = valid ? 16 : 0;
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(smem_u32(smem)), "l"(gmem), "r"(n) : "memory");
#else
  emu::cp_async(smem, gmem, 16, n PASS_WHERE);
#endif
}
DEV void cp_async_commit() { TWIN(asm volatile("cp.async.commit_group;\n" ::: "memory"), emu::cp_async_commit()); }
template <int N> DEV void cp_async_wait() { TWIN(asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"), emu::cp_async_wait(N)); }

DEV void ldmatrix_x4(uint32_t (&r)[4], const void* row WHERE) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_u32(row)) : "memory");
#else
  emu::ldmatrix(r, 4, false, row PASS_WHERE);
#endif
}
DEV void ldmatrix_x2(uint32_t (&r)[2], const void* row WHERE) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n" : "=r"(r[0]), "=r"(r[1]) : "r"(smem_u32(row)) : "memory");
#else
  emu::ldmatrix(r, 2, false, row PASS_WHERE);
#endif
}
DEV void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row WHERE) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_u32(row)) : "memory");
#else
  emu::ldmatrix(r, 4, true, row PASS_WHERE);
#endif
}
// d += a b of one warp: a (16, 16) row-major, b (16, 8) column-major, bf16 in, f32 out.
DEV void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] WHERE) {
#if defined(__CUDACC__)
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emu::mma_tile(d, a, b, 1, 1 PASS_WHERE);
#endif
}
// All products of MI row tiles and NI column tiles; on the host one meeting of the warp instead of MI * NI.
template <int MI, int NI> DEV void mma_tile(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4], const uint32_t (&b)[NI][2] WHERE) {
#if defined(__CUDACC__)
#pragma unroll
  for (int i = 0; i < MI; i++)
#pragma unroll
    for (int j = 0; j < NI; j++) mma_m16n8k16(d[i][j], a[i], b[j]);
#else
  emu::mma_tile(&d[0][0][0], &a[0][0], &b[0][0], MI, NI PASS_WHERE);
#endif
}
DEV float exp2_approx(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}
// Barrier ID (1 to 15) of THREADS threads of the block.
template <int ID, int THREADS> DEV void named_barrier(WHERE0) {
  TWIN(asm volatile("bar.sync %0, %1;\n" ::"n"(ID), "n"(THREADS) : "memory"), emu::barrier(ID, THREADS, true PASS_WHERE));
}
// One poll of a flag that other blocks set.
DEV uint32_t load_acquire(const uint32_t* p) {
#if defined(__CUDACC__)
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
#else
  return emu::poll(p);
#endif
}
