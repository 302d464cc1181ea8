// Each feature of the execution model once, in the smallest correct kernel.
#include "ptx_sm90.cuh"
#include "reduce.cuh"
#if defined(__CUDACC__)
#include "wgmma_32.cuh"
#endif

// ---- warps ----
KERNEL(warp_functions, 32, 1)(int* out, const int* in) {
  int i = threadIdx.x, v = in[i];
  int* o = out + i * 12;
  o[0] = __shfl_xor_sync(FULL_MASK, v, 5);
  o[1] = __shfl_up_sync(FULL_MASK, v, 3);
  o[2] = __shfl_down_sync(FULL_MASK, v, 3);
  o[3] = __shfl_sync(FULL_MASK, v, 9, 16);
  o[4] = int(__ballot_sync(FULL_MASK, v % 3 == 0));
  o[5] = __any_sync(FULL_MASK, v == in[31]);
  o[6] = __all_sync(FULL_MASK, v >= 0);
  o[7] = int(__reduce_add_sync(FULL_MASK, unsigned(v)));
  o[8] = int(__reduce_max_sync(FULL_MASK, unsigned(v)));
  o[9] = int(__reduce_min_sync(FULL_MASK, unsigned(v)));
  o[10] = 0;
  if (i < 12) o[10] = int(__ballot_sync(0xfffu, v % 2)) + __shfl_sync(0xfffu, v, 11);   // part of a warp
  o[11] = __popc(unsigned(v)) + __clz(v) + __ffs(v);
}
EXPORT_KERNEL(warp_functions, 32)

// ---- blocks of odd size, static and dynamic shared memory, 3 dimensions ----
KERNEL(block_shapes, 1024, 1)(int* out) {
  SHARED(int, x, [1024]);
  DYNAMIC_SHARED(raw);
  int* y = reinterpret_cast<int*>(raw);
  int n = blockDim.x * blockDim.y * blockDim.z, i = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  int b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  x[i] = i;
  __syncthreads();
  y[i] = x[n - 1 - i] + 1000 * b;
  __syncthreads();
  out[b * n + i] = y[(i + 1) % n];
}
EXPORT_KERNEL(block_shapes, 1024)

// ---- atomics ----
KERNEL(atomics, 64, 1)(int* out, float* sum, unsigned* bits) {
  SHARED(int, count, [2]);
  if (threadIdx.x < 2) count[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&count[threadIdx.x % 2], 1);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&out[0], count[0] + count[1]);
  int me = int(blockIdx.x * 64 + threadIdx.x);
  atomicMax(&out[1], me);
  atomicMin(&out[2], -me);
  atomicAdd(sum, 0.5f);
  unsigned seen = 0, next;
  do { next = seen; seen = atomicCAS(bits, next, next + 3); } while (seen != next);
  if (me == 17) atomicExch(&out[3], 99);
}
EXPORT_KERNEL(atomics, 64)

// ---- 16-bit floats and vector accesses ----
KERNEL(halves, 32, 1)(bf16* b, __half* h, float* back, const float* in, uint4* copied, const uint4* vectors) {
  int i = threadIdx.x;
  b[i] = __float2bfloat16_rn(in[i]);
  h[i] = __float2half_rn(in[i]);
  back[i] = __bfloat162float(b[i]) + __half2float(h[i]);
  copied[i] = vectors[31 - i];
}
EXPORT_KERNEL(halves, 32)
// Neighbouring threads write single bytes: no race.
KERNEL(single_bytes, 64, 1)(uint8_t* out, const uint8_t* in) {
  SHARED(uint8_t, x, [64]);
  x[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = uint8_t(in[threadIdx.x] + 1);
  x[threadIdx.x] += 2;
  __syncthreads();
  out[64 + threadIdx.x] = x[threadIdx.x ^ 63];
}
EXPORT_KERNEL(single_bytes, 64)

// ---- ldmatrix (plain and transposed), mma.sync, stmatrix: c (16, 16) = a (16, 16) b (16, 16) ----
KERNEL(tensor_cores, 32, 1)(float* c, bf16* rounded, const uint4* a, const uint4* b) {
  SHARED(bf16, sa, [16][16]);
  SHARED(bf16, sb, [16][16]);
  SHARED(bf16, sc, [16][16]);
  int lane = threadIdx.x;
  *reinterpret_cast<uint4*>(&sa[lane / 2][lane % 2 * 8]) = a[lane];
  *reinterpret_cast<uint4*>(&sb[lane / 2][lane % 2 * 8]) = b[lane];
  __syncwarp();
  uint32_t fa[1][4], f[4], fb[2][2];
  ldmatrix_x4(fa[0], &sa[lane % 16][lane / 16 * 8]);
  ldmatrix_x4_trans(f, &sb[lane % 16][lane / 16 * 8]);
  fb[0][0] = f[0]; fb[0][1] = f[1]; fb[1][0] = f[2]; fb[1][1] = f[3];
  float d[1][2][4] = {};
  mma_tile<1, 2>(d, fa, fb);
  for (int j = 0; j < 2; j++)
    for (int e = 0; e < 4; e++) c[(lane / 4 + e / 2 * 8) * 16 + j * 8 + lane % 4 * 2 + e % 2] = d[0][j][e];
  stmatrix_x4(&sc[lane % 16][lane / 16 * 8], pack_bf16(d[0][0][0], d[0][0][1]), pack_bf16(d[0][0][2], d[0][0][3]), pack_bf16(d[0][1][0], d[0][1][1]),
              pack_bf16(d[0][1][2], d[0][1][3]));
  __syncwarp();
  for (int i = lane; i < 256; i += 32) rounded[i] = sc[i / 16][i % 16];
}
EXPORT_KERNEL(tensor_cores, 32)

// ---- wgmma over images of shared memory that the test lays out: d[thread][i] ----
struct Tiles { uint32_t a_at, b_at, a_lbo, a_sbo, b_lbo, b_sbo, a_mode, b_mode; int ta, tb, e4m3, from_registers; };
// The product of the chosen kind. On the chip the kind is part of the instruction: one instance for each.
#if defined(__CUDACC__)
template <class Product> DEV void alone(float (&acc)[16], Product product) {
  wgmma_fence();
  product();
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_done(acc);
}
DEV void chosen_product(float (&acc)[16], const uint32_t (&r)[4], uint64_t da, uint64_t db, const Tiles& t) {
  using W = Wgmma<32>;
  int kind = t.e4m3 ? 6 + t.from_registers : t.from_registers ? 4 + t.tb : 2 * t.ta + t.tb;
  switch (kind) {
    case 0: return alone(acc, [&] { W::bf16_ss<0, 0>(acc, da, db, 1); });
    case 1: return alone(acc, [&] { W::bf16_ss<0, 1>(acc, da, db, 1); });
    case 2: return alone(acc, [&] { W::bf16_ss<1, 0>(acc, da, db, 1); });
    case 3: return alone(acc, [&] { W::bf16_ss<1, 1>(acc, da, db, 1); });
    case 4: return alone(acc, [&] { W::bf16_rs<0>(acc, r, db, 1); });
    case 5: return alone(acc, [&] { W::bf16_rs<1>(acc, r, db, 1); });
    case 6: return alone(acc, [&] { W::e4m3_ss(acc, da, db, 1); });
    case 7: return alone(acc, [&] { W::e4m3_rs(acc, r, db, 1); });
  }
}
#else
DEV void chosen_product(float (&acc)[16], const uint32_t (&r)[4], uint64_t da, uint64_t db, const Tiles& t) {
  wgmma_fence();
  emu::wgmma(acc, 32, t.from_registers ? r : nullptr, da, db, true, t.ta, t.tb, t.e4m3 ? emu::Operand::E4m3 : emu::Operand::Bf16, __FILE__, __LINE__);
  wgmma_commit();
  wgmma_wait<0>();
}
#endif
DEV uint64_t descriptor(const uint8_t* at, uint32_t lbo, uint32_t sbo, uint32_t mode) {
  return uint64_t(smem_u32(at) >> 4) | uint64_t(lbo >> 4) << 16 | uint64_t(sbo >> 4) << 32 | uint64_t(mode) << 62;
}
KERNEL(wgmma_layouts, 128, 1)(float* d, const uint8_t* image, int bytes, const uint32_t* registers, const float* start, Tiles t, int fault) {
  DYNAMIC_SHARED(raw);
  int i = threadIdx.x;
  for (int at = i * 16; at < bytes; at += 128 * 16) *reinterpret_cast<uint4*>(raw + at) = *reinterpret_cast<const uint4*>(image + at);
  if (fault != 1) fence_proxy_async();
  __syncthreads();
  float acc[16];
  for (int k = 0; k < 16; k++) acc[k] = start[i * 16 + k];
  uint32_t r[4];
  for (int k = 0; k < 4; k++) r[k] = registers[i * 4 + k];
  uint64_t da = t.from_registers ? 0 : descriptor(raw + t.a_at, t.a_lbo, t.a_sbo, t.a_mode), db = descriptor(raw + t.b_at, t.b_lbo, t.b_sbo, t.b_mode);
  chosen_product(acc, r, da, db, t);
  for (int k = 0; k < 16; k++) d[i * 16 + k] = acc[k];
}
EXPORT_KERNEL(wgmma_layouts, 128)

// ---- TMA: boxes that reach outside, stores, sums ----
KERNEL(tma_shift, 32, 1)(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to, int x, int y, int add) {
  DYNAMIC_SHARED(raw);
  float* box = reinterpret_cast<float*>(raw);                     // 8 rows of 32
  uint64_t* bar = reinterpret_cast<uint64_t*>(raw + 1024);
  if (threadIdx.x == 0) { mbar_init(bar, 1); mbar_fence_init(); }
  __syncthreads();
  if (threadIdx.x == 0) { mbar_arrive_expect_tx(bar, 1024); tma_load_2d(box, &from, bar, x, y); }
  mbar_wait(bar, 0);
  for (int r = 0; r < 8; r++) box[r * 32 + threadIdx.x] += 1;
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (add) tma_reduce_add_2d(&to, box, x, y);
    else tma_store_2d(&to, box, x, y);
    tma_store_commit();
    tma_store_wait<0>();
  }
}
EXPORT_KERNEL(tma_shift, 32)

// Another thread writes where a box was loaded from: once it has landed, or (fault) whenever.
KERNEL(tma_overwrite, 64, 1)(const __grid_constant__ TensorMap from, float* source, int fault) {
  DYNAMIC_SHARED(raw);
  uint64_t* bar = reinterpret_cast<uint64_t*>(raw + 1024);
  if (threadIdx.x == 0) { mbar_init(bar, 1); mbar_fence_init(); }
  __syncthreads();
  if (threadIdx.x == 0) { mbar_arrive_expect_tx(bar, 1024); tma_load_2d(raw, &from, bar, 0, 0); }
  if (!fault || threadIdx.x != 32) mbar_wait(bar, 0);
  if (threadIdx.x == 32) source[0] = 2.0f;
}
EXPORT_KERNEL(tma_overwrite, 64)

// ---- clusters: each block reads the next one's shared memory ----
KERNEL(cluster_ring, 64, 1)(float* out, const float* in, int blocks, int fault) {
  SHARED(float, x, [64]);
  unsigned rank = cluster_rank(), next = (rank + 1) % unsigned(blocks);
  x[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  if (fault == 1) __syncthreads();
  else cluster_sync();
  float* theirs = cluster_map(&x[0], fault == 4 ? 9 : next);
  out[blockIdx.x * 64 + threadIdx.x] = theirs[threadIdx.x ^ 1];
  if (fault != 2 && fault != 3) cluster_sync();                    // nobody leaves, or writes, while others read
  if (fault != 3) x[threadIdx.x] = 0;
}
EXPORT_KERNEL(cluster_ring, 64)
// One block loads a box for all, each waits for its own copy; the loader waits until all are ready for it.
KERNEL(cluster_multicast, 32, 1)(const __grid_constant__ TensorMap from, float* out, int blocks, int fault) {
  DYNAMIC_SHARED(raw);
  float* box = reinterpret_cast<float*>(raw);
  uint64_t* bar = reinterpret_cast<uint64_t*>(raw + 1024);
  uint64_t* free = bar + 1;
  if (threadIdx.x == 0) { mbar_init(bar, 1); mbar_init(free, uint32_t(blocks)); mbar_fence_init(); }
  cluster_sync();
  for (int t = 0; t < 3; t++) {
    if (threadIdx.x == 0) {
      mbar_arrive_expect_tx(bar, 1024);
      if (fault != 2) mbar_arrive_remote(free, 0);
      if (cluster_rank() == 0) {
        if (fault != 2) mbar_wait(free, t & 1);
        tma_load_2d_multicast(box, &from, bar, fault == 1 ? 0xff : uint16_t((1 << blocks) - 1), 0, t * 8);
      }
    }
    mbar_wait(bar, t & 1);
    for (int r = 0; r < 8; r++) out[((blockIdx.x * 3 + t) * 8 + r) * 32 + threadIdx.x] = box[r * 32 + threadIdx.x];
    __syncthreads();
  }
  cluster_sync();
}
EXPORT_KERNEL(cluster_multicast, 32)

// ---- cooperative grids: every block sees what all wrote before the barrier ----
KERNEL(grid_barrier, 64, 1)(float* out, float* between, unsigned* arrived, int fault) {
  int i = blockIdx.x * 64 + threadIdx.x, n = gridDim.x * 64;
  for (int round = 0; round < 2; round++) {
    between[round * n + i] = float(i + round);
    __syncthreads();
    if (threadIdx.x == 0) {
      if (fault != 1) __threadfence();
      atomicAdd(arrived, 1u);
      while (load_acquire(arrived) < (round + 1) * gridDim.x) {}
      __threadfence();
    }
    __syncthreads();
    out[round * n + i] = between[round * n + n - 1 - i];
  }
}
EXPORT_KERNEL(grid_barrier, 64)

// ---- the memory profile ----
KERNEL(patterns, 32, 1)(float* out, const float* in, int stride, int vector) {
  SHARED(float, x, [32 * 33]);
  for (int i = threadIdx.x; i < 32 * 33; i += 32) x[i] = 0;
  __syncwarp();
  if (vector) {
    float4 v = *reinterpret_cast<float4*>(&x[threadIdx.x * stride]);
    out[threadIdx.x] = v.x;
  } else {
    out[threadIdx.x] = x[threadIdx.x * stride] + in[threadIdx.x * stride];
  }
}
EXPORT_KERNEL(patterns, 32)
// A thread of a warp is alone, or late, at an access: still one request.
KERNEL(uneven_lanes, 64, 1)(float* out, const float* in) {
  SHARED(float, x, [64]);
  if (threadIdx.x < 32) { named_barrier<1, 64>(); x[threadIdx.x] = in[threadIdx.x]; }
  else { x[threadIdx.x] = in[threadIdx.x]; named_barrier<1, 64>(); }
  out[threadIdx.x] = x[threadIdx.x];
}
EXPORT_KERNEL(uneven_lanes, 64)
