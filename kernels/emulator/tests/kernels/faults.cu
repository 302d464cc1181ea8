// One kernel for each kind of rule; `fault` 0 keeps it, any other number breaks it at one place.
#include "ptx.cuh"

// ---- block barriers and shared memory: out[i] = in[i ^ 96] + in[i], 128 threads ----
KERNEL(shared_exchange, 128, 1)(float* out, const float* in, int fault) {
  SHARED(float, x, [128]);
  SHARED(float, y, [32]);
  int i = threadIdx.x;
  if (fault != 3 || i != 5) x[i] = in[i];
  if (fault == 4) x[i + (i == 127)] = 0;
  if (fault == 5 && i == 0) { y[32] = 1; x[0] = y[32]; }
  if (fault != 1) __syncthreads();
  float other = x[i ^ 96];
  if (fault != 2) __syncthreads();
  x[i] = other;
  __syncthreads();
  out[i] = x[i] + in[i];
}
EXPORT_KERNEL(shared_exchange, 128)

KERNEL(dynamic_exchange, 64, 1)(float* out, const float* in, int fault) {
  DYNAMIC_SHARED(raw);
  float* x = reinterpret_cast<float*>(raw);
  int i = threadIdx.x;
  x[i + (fault == 1)] = in[i];
  __syncthreads();
  out[i] = x[i ^ 33];
}
EXPORT_KERNEL(dynamic_exchange, 64)

// ---- global memory: out[i] = 2 in[i] for 128 elements ----
KERNEL(global_double, 128, 1)(float* out, const float* in, int fault) {
  int i = threadIdx.x;
  float v = in[fault == 1 ? i + 1 : i];
  if (fault == 2) v = in[i + (1 << 20)];
  if (fault == 3 && i == 7) v = out[i];
  if (fault == 4) {
    float4 q = *reinterpret_cast<const float4*>(in + (i == 9));
    v = q.x + q.y + q.z + q.w;
  }
  out[fault == 5 ? i - 1 : i] = 2 * v;
}
EXPORT_KERNEL(global_double, 128)

// Each block adds its part to the next block's element: only after a flag, or not at all.
KERNEL(across_blocks, 32, 1)(float* out, const float* in, int* count, int fault) {
  int i = threadIdx.x, b = blockIdx.x;
  SHARED(int, last, [1]);
  out[b * 32 + i] = in[b * 32 + i];
  if (fault == 1) { out[((b + 1) % gridDim.x) * 32 + i] = 0; return; }
  if (fault != 3) __syncthreads();
  if (i == 0) {
    if (fault != 2) __threadfence();
    last[0] = atomicAdd(count, 1) == int(gridDim.x) - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last[0]) return;
  float sum = 0;
  for (unsigned k = 0; k < gridDim.x; k++) sum += out[k * 32 + (i ^ 1)];
  __syncthreads();
  out[i] = sum;
}
EXPORT_KERNEL(across_blocks, 32)

KERNEL(counted, 64, 1)(int* count, int fault) {
  if (fault == 1 && threadIdx.x == 3) *count = 0;
  else atomicAdd(count, 1);
}
EXPORT_KERNEL(counted, 64)

// ---- collectives ----
KERNEL(collectives, 256, 1)(float* out, const float* in, int fault) {
  int i = threadIdx.x;
  float v = in[i % 128];
  if (fault == 1 && i < 231) return;                                    // a shuffle that others never reach
  if (fault == 2) {
    if (i % 32 < 16) v += __shfl_xor_sync(FULL_MASK, v, 1);
    else v += __shfl_xor_sync(FULL_MASK, v, 2);
  }
  if (fault == 3 && i % 32 < 16) v += __shfl_sync(0xffffu, v, 20);      // a lane that takes no part
  if (fault == 4 && i % 32 >= 16) v += __shfl_sync(0xffffu, v, 0);      // not in its own mask
  if (fault == 5) { if (i < 128) __syncthreads(); }                     // half of the block
  if (fault == 6) {
    if (i < 128) __syncthreads();
    else __syncthreads();
  }
  v += __shfl_xor_sync(FULL_MASK, v, 1);
  if (fault == 7) {
    if (i < 128) named_barrier<1, 256>();
    else named_barrier<1, 128>();
  }
  if (fault == 8 && i < 96) named_barrier<2, 128>();                    // a warp is missing
  if (fault != 8 && i < 128) named_barrier<2, 128>();
  out[i] = v;
}
EXPORT_KERNEL(collectives, 256)

// A warp that hands a value to another through a named barrier.
KERNEL(named_handover, 64, 1)(float* out, const float* in, int fault) {
  SHARED(float, x, [32]);
  int i = threadIdx.x, lane = i % 32;
  if (i < 32) x[lane] = in[lane];
  if (fault != 1) named_barrier<1, 64>();
  if (i >= 32) out[lane] = x[lane ^ 1];
  if (fault != 2) named_barrier<2, 64>();
  if (i < 32) x[lane] = in[lane + 32];
  __syncwarp();
  if (i < 32) out[lane + 32] = x[lane ^ 1];
}
EXPORT_KERNEL(named_handover, 64)

// Lanes of one warp through shared memory: a shuffle between does not order them.
KERNEL(warp_handover, 32, 1)(float* out, const float* in, int fault) {
  SHARED(float, x, [32]);
  int i = threadIdx.x;
  x[i] = in[i];
  if (fault == 1) __shfl_sync(FULL_MASK, 0, 0);
  else __syncwarp();
  out[i] = x[i ^ 7];
}
EXPORT_KERNEL(warp_handover, 32)

// ---- cp.async: three stages of 128 float4, `steps` of them summed ----
KERNEL(copy_ring, 128, 1)(float4* out, const float4* in, int steps, int fault) {
  SHARED(float4, ring, [3][128]);
  int i = threadIdx.x;
  auto fetch = [&](int t) {
    const void* src = in + t * 128 + i;
    if (fault == 3 && t == 1) src = reinterpret_cast<const float*>(src) + 1;
    if (t < steps || fault == 4) cp_async_16(&ring[t % 3][i], src, true);
    cp_async_commit();
  };
  fetch(0);
  fetch(1);
  float4 sum = make_float4(0, 0, 0, 0);
  for (int t = 0; t < steps; t++) {
    if (fault == 1) cp_async_wait<2>();
    else cp_async_wait<1>();
    if (fault != 2) __syncthreads();
    fetch(t + 2);
    float4 v = ring[t % 3][i ^ 64];
    sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
  }
  if (fault != 4) cp_async_wait<0>();
  out[i] = sum;
}
EXPORT_KERNEL(copy_ring, 128)

KERNEL(matrix_rows, 32, 1)(uint32_t* out, const uint4* in, int fault) {
  SHARED(uint4, x, [33]);
  x[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  const uint8_t* row = reinterpret_cast<const uint8_t*>(&x[threadIdx.x]) + (fault == 1 ? 8 : 0);
  if (fault == 2) row = reinterpret_cast<const uint8_t*>(in);
  uint32_t r[4];
  ldmatrix_x4(r, row);
  for (int k = 0; k < 4; k++) out[threadIdx.x * 4 + k] = r[k];
}
EXPORT_KERNEL(matrix_rows, 32)

// A stack of 64 KiB is the emulator's own limit.
#if !defined(__CUDACC__)
KERNEL(deep_stack, 32, 1)(float* out, int depth) {
  volatile float local[256];
  for (int i = 0; i < 256; i++) local[i] = float(i);
  // Recursion that no compiler unrolls.
  struct Deep { static float down(int n) { volatile float x[256]; x[n % 256] = float(n); return n == 0 ? 0.0f : down(n - 1) + x[n % 256]; } };
  out[threadIdx.x] = Deep::down(depth) + local[7];
}
EXPORT_KERNEL(deep_stack, 32)
#endif

KERNEL(never_set, 32, 1)(uint32_t* flag) { while (load_acquire(flag) == 0) {} }
EXPORT_KERNEL(never_set, 32)
